"""``mf``: the verbs, and what happens to errors: one line on stderr, an exit code, nothing left behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from modality_forcing import __version__
from modality_forcing.cli import (
    complete,
    convert,
    d2i,
    data,
    doctor,
    i2d,
    inpaint,
    joint,
    models,
    serve,
    study,
    train,
)
from modality_forcing.cli import eval as evaluate
from modality_forcing.errors import OutOfMemoryError, TrainingError, UserError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
LONGEST_MESSAGE = 600  # characters: a file name may be thousands long
# typer carries click inside itself in some versions and depends on it in others.
_USAGE_ERROR: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

FIRST_STEPS = """\
Modality Forcing: one diffusion transformer for images and depth. Try first:

  mf joint --prompt "a cozy sunlit kitchen with wooden cabinets"    text -> image, depth, point cloud
  mf i2d --image photo.jpg                                          image -> depth, point cloud
  mf d2i --depth depth.npy --prompt "a snowy village"               depth -> image
  mf doctor                                                         what this machine can do

`mf --help` lists every command, `mf joint --help` every option of one."""

app = typer.Typer(
    name="mf",
    help="One diffusion transformer for images and depth.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("joint")(joint.joint)
app.command("i2d")(i2d.i2d)
app.command("d2i")(d2i.d2i)
app.command("complete")(complete.complete)
app.command("inpaint")(inpaint.inpaint)
app.command("train")(train.train)
app.command("convert")(convert.convert)
app.command("models")(models.models)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="eval")
app.command("study")(study.study)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"modality-forcing {__version__}")
    elif context.invoked_subcommand is None:
        print(FIRST_STEPS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0: done; 1: it failed (out of memory, a missing package); 2: the input is wrong; 130: interrupted.
    """
    try:
        with _terminate_cleanly():
            result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # what newer versions of typer make of KeyboardInterrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except _USAGE_ERROR as error:
        return _fail(_usage_message(error), EXIT_BAD_INPUT)
    except UserError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except (OutOfMemoryError, TrainingError) as error:
        return _fail(str(error), EXIT_FAILED)
    except MemoryError:
        return _fail("this machine's memory is full; lower --size, --num-images or --max-points", EXIT_FAILED)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "modality_forcing"):
            raise
        return _fail(f"the package {name} is missing; `mf doctor` says how to get it", EXIT_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing half done was left", EXIT_INTERRUPTED)
    except BrokenPipeError:  # `mf ... | head`
        sys.stderr.close()
        return EXIT_FAILED


def _fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def _usage_message(error: Any) -> str:
    """What typer says of a wrong command line, and the wrong value, which newer versions leave out."""
    message = error.format_message()
    details = getattr(error.__cause__, "errors", None)
    wrong = details()[0].get("input") if callable(details) else None
    return f"{message}; it is {wrong!r}" if isinstance(wrong, str) and repr(wrong) not in message else message


def one_line(message: str) -> str:
    """``message`` without line breaks, control characters or undecodable bytes, and not endless."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text


class _terminate_cleanly:
    """While it lasts, SIGTERM unwinds the stack like Ctrl-C does, so that unfinished files are removed."""

    def __enter__(self) -> None:
        self.before = None
        try:
            self.before = signal.signal(signal.SIGTERM, self.stop)
        except ValueError:  # not the main thread: signals are somebody else's
            return

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    @staticmethod
    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
