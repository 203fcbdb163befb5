"""``mf serve``: the service over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modality_forcing.cli import options as o

if TYPE_CHECKING:
    from types import FrameType

    from modality_forcing.server.settings import ServerSettings

_ACCESS, _LIMITS, _KEEPING = "Who may come in", "Limits", "Results"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]SOURCE",
            help="A model: a name, a folder or a Hub id; repeat it for several. The first is the default.",
            show_default=o.DEFAULT_MODEL,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", rich_help_panel=_ACCESS, help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_ACCESS, help="0: any that is free.")
    ] = 7860,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            rich_help_panel=_ACCESS,
            help="Who has one may come in; repeat it for several. Others can read a command line: better is "
            "MF_API_KEY or --api-key-file.",
        ),
    ] = None,
    api_key_file: Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", rich_help_panel=_ACCESS, help="One key per line."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", rich_help_panel=_ACCESS, help="Let everybody in who reaches --host.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            rich_help_panel=_ACCESS,
            help="A name under which this server is reached, such as that of a proxy; '*' is any.",
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The web page at /, or HTTP alone.")] = True,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda|cuda:N|mps",
            help="Where to compute; repeat it for several, each gets a process.",
            show_default="auto",
        ),
    ] = None,
    dtype: o.Dtype = None,
    text_encoder: o.TextEncoderSource = None,
    compile: o.Compile = False,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Items computed together; 1 equals the command line to the bit, more up to rounding.",
        ),
    ] = 8,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="MB", rich_help_panel=_LIMITS, help="Of one request.")
    ] = 32,
    max_steps: Annotated[int, typer.Option("--max-steps", metavar="N", rich_help_panel=_LIMITS)] = 100,
    max_area: Annotated[
        int, typer.Option("--max-area", metavar="PIXELS", rich_help_panel=_LIMITS, help="Of one result.")
    ] = 1024 * 1024,
    max_items: Annotated[
        int, typer.Option("--max-items", metavar="N", rich_help_panel=_LIMITS, help="Results of one job.")
    ] = 16,
    max_queue: Annotated[
        int, typer.Option("--max-queue", metavar="N", rich_help_panel=_LIMITS, help="Jobs that may wait.")
    ] = 100,
    rate: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=_LIMITS, help="Submissions per minute and key (or address)."
        ),
    ] = 120,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=_KEEPING,
            help="Jobs and results.",
            show_default="~/.local/share/modality-forcing/server",
        ),
    ] = None,
    ttl: Annotated[
        float, typer.Option(metavar="HOURS", rich_help_panel=_KEEPING, help="How long results are kept.")
    ] = 24.0,
    disk_cap: Annotated[
        float,
        typer.Option(
            "--disk-cap",
            metavar="GB",
            rich_help_panel=_KEEPING,
            help="Room for results; the oldest go first.",
        ),
    ] = 10.0,
) -> None:
    """Serve models over HTTP."""
    from modality_forcing.cli import inputs
    from modality_forcing.server.settings import ServerSettings, default_data

    devices = tuple(device or ["auto"])
    for name in devices:
        checked = inputs.model_options(o.DEFAULT_MODEL, text_encoder, name, dtype, compile)
    folder = default_data() if data is None else inputs.writable_folder(data, "--data")
    settings = ServerSettings(
        models=dict(_named(text) for text in model or [o.DEFAULT_MODEL]),
        data=folder,
        host=host,
        port=port,
        api_keys=tuple(_keys(api_key, api_key_file)),
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        devices=devices,
        dtype=checked.get("dtype"),
        text_encoder=text_encoder,
        compile=compile,
        batch_size=batch_size,
        max_body=max_body * 10**6,
        max_steps=max_steps,
        max_area=max_area,
        max_items=max_items,
        max_queue=max_queue,
        rate=rate,
        ttl=ttl * 3600,
        disk_cap=round(disk_cap * 10**9),
    )
    _run(settings, page)


def _named(text: str) -> tuple[str, str]:
    """ "NAME=SOURCE", or a source whose last part is its name unless it is a Hub id."""
    from pathlib import Path

    from modality_forcing.errors import UserError

    name, equals, source = text.partition("=")
    if equals and not Path(text).exists():
        if not source:
            raise UserError(f"--model is {text[:60]!r}; right is NAME=SOURCE or SOURCE")
        return name, source
    if not text or "\0" in text:
        raise UserError(f"--model is {text!r}; right is a name, a folder or a Hub id")
    path = Path(text).expanduser()
    return (path.resolve().name, str(path)) if path.exists() else (text, text)


def _keys(given: list[str] | None, file: str | None) -> list[str]:
    """Keys of the options, the file and the environment."""
    import os

    keys = list(given or [])
    if file is not None:
        from modality_forcing.errors import UserError
        from modality_forcing.io.checks import existing_file

        try:
            lines = existing_file(file, "API key file").read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"API key file {file} is not UTF-8 text") from None
        keys += [line.strip() for line in lines if line.strip()]
    return keys + os.environ.get("MF_API_KEY", "").replace(",", " ").split()


def _run(settings: ServerSettings, page: bool) -> None:
    import contextlib
    import logging
    import socket

    import uvicorn

    from modality_forcing.errors import UserError
    from modality_forcing.server.app import create_app
    from modality_forcing.server.service import JobService

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("modality_forcing.server").setLevel(logging.INFO)
    broken: list[str] = []
    service = JobService(settings)
    mount = None
    if page:
        from modality_forcing.server.page import build

        mount = build.mount
    app = create_app(settings, page=mount, service=service)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=512,
        timeout_graceful_shutdown=round(settings.grace) + 5,
    )

    class Server(uvicorn.Server):
        """Ends streams of events as soon as it is told to stop: they would hold it up."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.announce_end()
            super().handle_exit(sig, frame)

    server = Server(config)

    def give_up(text: str) -> None:
        # Later on a worker may come back; at the start the operator must hear it.
        if not any(dispatcher.defaults for dispatcher in service.dispatchers):
            broken.append(text)
            service.announce_end()
            server.should_exit = True

    service.on_broken = give_up
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        service.close()
        raise UserError(
            f"cannot listen on {settings.host[:80]} port {settings.port}: {error.strerror or error};"
            " choose another with --host or --port"
        ) from None
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"http://{shown}:{listening.getsockname()[1]}/", flush=True)
    with contextlib.suppress(
        KeyboardInterrupt
    ):  # how a server is stopped; uvicorn repeats the signal at its end
        server.run(sockets=[listening])
    if broken:
        raise UserError(broken[0])
