"""What a guest is told: the documents (pure) and the drive that carries them."""
