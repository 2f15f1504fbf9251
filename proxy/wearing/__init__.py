"""What makes a program wear Overcoat: the variables by which it finds the sidecar and trusts the local CA, the files
that these name, a sidecar for one program alone, and the program itself. `overcoat run` and `overcoat env` call it, and
`overcoat serve --publish-ca` writes the files.

Offers:

- `files`: write_files; what programs read to trust the local CA
- `own`: NotReadable, write_own; what is added to what the user has named already
- `program`: CannotRun, Program, Signals, end_like, find, left_behind; runs the program
- `seen`: Watch, children_of, name_of; connections that go past the sidecar
- `sidecar`: Sidecar, SidecarFailed; a sidecar for one program
- `tally`: Tally; adds up decision lines
- `variables`: BUNDLE, PROXIES, Coat, shell_text; the variables
"""
