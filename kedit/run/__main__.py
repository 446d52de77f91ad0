from kedit.run.main import main

main()
