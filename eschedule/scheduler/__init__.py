"""From a query to a claimed host."""
