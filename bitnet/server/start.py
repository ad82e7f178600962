"""An HTTP server that speaks OpenAI's protocol; needs the extra `server`.

`bitnet serve` and serve() below; docs/server.md has the endpoints and limits.
"""

EXTRA = "pip install 'bitnet-engine[server]'"


def serve(load, options):
    """Serve the Model that load() gives, until SIGTERM or SIGINT, then drain; see options.Options.

    OSError if the address cannot be bound, ImportError, naming the extra, if it is not installed;
    what load raises.
    """
    try:
        from .run import run
    except ImportError as error:
        raise ImportError(f"the server needs {error.name}: {EXTRA}") from None
    run(load, options)
