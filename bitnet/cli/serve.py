"""serve: an HTTP server with OpenAI's protocol, and a chat page."""

import argparse
import dataclasses
import os

from ..api.choices import PREFIX_FOLDER_LIMIT
from ..checkpoints.hub_names import of_address
from ..server import serve
from ..server.options import LOG_FORMATS, Options
from . import options

USAGE = "[MODEL]"
N_ARGS = (0, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The server ends on SIGTERM or ctrl-C, once what runs is complete.\n"
        "BITNET_API_KEY does what --api-key does, and does not show in `ps`."
    )
    options.add_load(parser)
    options.add_speculative(parser)
    options.add_chat_template(parser)
    default = Options()
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default=default.host,
        metavar="ADDRESS",
        help=f"where to listen; other than loopback needs a key (default: {default.host})",
    )
    group.add_argument(
        "--port",
        type=options.number(int, 0, 65535),
        default=default.port,
        metavar="N",
        help=f"0: a free one (default: {default.port})",
    )
    options.add_slots(group, 4, "sequences that run at once")
    group.add_argument(
        "--prefix-folder",
        metavar="FOLDER",
        help="keep what prompts begin with in files, for a restart and where "
        "memory has no room (default: in memory alone)",
    )
    group.add_argument(
        "--prefix-folder-limit",
        type=options.size,
        default=PREFIX_FOLDER_LIMIT,
        metavar="SIZE",
        help=f"bytes of those files at most (default: {PREFIX_FOLDER_LIMIT})",
    )
    group.add_argument(
        "--queue",
        type=options.number(int, 0, 10000),
        default=default.queue,
        metavar="N",
        help="sequences that may wait for a slot, more are refused with 429; one client has "
        f"three quarters of these and the slots at most (default: {default.queue})",
    )
    group.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="what clients must send (default: BITNET_API_KEY, else nothing); may be given several "
        "times: each key is a client then, who share the model fairly",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="such keys, one a line",
    )
    group.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="of a proxy, or a network of them, whose X-Forwarded-For tells clients apart",
    )
    group.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="speak HTTPS with this certificate and its chain, in PEM; with --tls-key",
    )
    group.add_argument("--tls-key", metavar="FILE", help="its key, in PEM")
    group.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default=default.log_format,
        help=f"of the lines on stderr (default: {default.log_format})",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name this server is called by; addresses and localhost are allowed",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page of another origin that may use it, as https://example.org",
    )
    group.add_argument(
        "--model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="what clients call the model (default: the file's or the hub's name); "
        "may be given several times",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse unknown fields, other names of the model, and what of a schema cannot "
        "be followed (default: pass over them, with a line in the log once for each)",
    )
    group.add_argument(
        "--response-store",
        type=options.size,
        default=default.response_store,
        metavar="SIZE",
        help="keep the latest of /v1/responses in so many bytes of memory, for "
        "previous_response_id (default: keep none)",
    )
    group.add_argument(
        "--embedding-model",
        metavar="MODEL",
        help="a second model, which answers /v1/embeddings, within the same memory limit",
    )
    group.add_argument(
        "--embedding-name",
        metavar="NAME",
        help="what clients call that one (default: the file's or the hub's name)",
    )
    options.add_reasoning_format(
        group,
        "what a model thinks stays in a reply's content",
        "it is the reply's reasoning_content, unless the request says otherwise",
    )
    for name, what in (
        ("drain", "requests may go on after SIGTERM"),
        ("read", "a client may take to send a request's headers, and its body"),
        ("write", "a client may take to read what is sent"),
    ):
        seconds = getattr(default, f"{name}_seconds")
        group.add_argument(
            f"--{name}-seconds",
            type=options.number(float, 0.1, 86400),
            default=seconds,
            metavar="S",
            help=f"how long {what} (default: {seconds:g})",
        )


def keys_of(given: list[str] | None, path: str | None) -> list[str]:
    """The keys of the command line and of a file; BITNET_API_KEY's where neither is given."""
    keys = list(given or ())
    if path is not None:
        with open(path, encoding="utf-8") as file:
            found = [line.strip() for line in file if line.strip()]
        if not found:
            raise ValueError(f"--api-key-file: {path}: no key in it")
        keys += found
    if not keys and (key := os.environ.get("BITNET_API_KEY")):
        keys = [key]
    return keys


def main(args: argparse.Namespace) -> int:
    from ..api.load import LoadSettings, load_model, load_with_embedding

    path = args.positionals[0] if args.positionals else None
    names = (
        "host",
        "port",
        "queue",
        "strict",
        "drain_seconds",
        "read_seconds",
        "write_seconds",
        "reasoning_format",
        "response_store",
        "embedding_name",
        "tls_cert",
        "tls_key",
        "log_format",
    )
    keys = keys_of(args.api_key, args.api_key_file)
    chosen = Options(
        **{name: getattr(args, name) for name in names},
        api_key=keys[0] if keys else None,
        more_keys=tuple(keys[1:]),
        trusted_proxies=tuple(args.trusted_proxy),
        allow_hosts=tuple(args.allow_host),
        cors_origins=tuple(args.cors_origin),
        model_names=tuple(args.model_name),
    )
    if not chosen.model_names and path is not None and not os.path.exists(path):
        chosen = dataclasses.replace(chosen, model_names=(of_address(path),))  # of the hub
    second = args.embedding_model
    if second is not None and chosen.embedding_name is None and not os.path.exists(second):
        chosen = dataclasses.replace(chosen, embedding_name=of_address(second))
    settings = LoadSettings(
        **options.load_keywords(args),
        chat_template=options.chat_template(args),
        speculative=args.speculative,
        slots=args.slots,
        prefix_folder=args.prefix_folder,
        prefix_folder_limit=args.prefix_folder_limit,
        fair=True,
    )
    if second is None:
        serve(lambda: [load_model(path, settings)], chosen)
    else:
        serve(lambda: load_with_embedding(path, settings, second), chosen)
    return 0
