from md_server.cli import main

main()
