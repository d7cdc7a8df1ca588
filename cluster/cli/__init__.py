"""The command line: `cuvee …`.

    main      the typer app: which commands there are
    options   flags that several commands share, and the files and numbers they are read from
    call      the gRPC channel, and how a server's refusal is told to a person
    reply     one streamed reply: what came, when, and by whom
    runs      text and the members that said it, aligned
    paint     colours, marks, legend, summary
    generate, chat, blends, check, models     one command each

`deployments.cli` adds `up` and `demo`, which need Ray. Importing a command costs typer alone; gRPC
and protobuf are imported when a command runs, so that `--help` answers at once.
"""
