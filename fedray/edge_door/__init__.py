"""The edges' door: an HTTP listener of its own that answers ``/edge/v1`` and no more.

`fedray.edges.protocol` declares its calls. `actor` is what runs on the cluster,
`calls` the ASGI application, `open_runs` what it knows of each run, `board` the open
tasks, `uploads` the files that arrive, `tls` its certificates and handshakes.
"""
