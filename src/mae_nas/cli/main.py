"""`mae-nas`: which command, and how errors and exit codes look.

Nothing here or in what it imports at the top knows torch, so that help, a wrong name and tab
completion answer at once.
"""

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mae_nas import __version__
from mae_nas.cli import launch
from mae_nas.cli.codes import (
    COLLAPSED,
    CONFIGURATION,
    DONE,
    FAILED,
    INTERRUPTED,
    JobsFailedError,
    stopped_by,
)
from mae_nas.cli.spelling import suggest
from mae_nas.stopping import Stopper

if TYPE_CHECKING:
    from mae_nas.runs.folder import RunFolder
    from mae_nas.runs.resume import Decision


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # with LANG=C it cannot say "…"
            stream.reconfigure(errors="replace")
    # Before torch is loaded: threads that wait by spinning slow a step several times on a computer
    # that has anything else to do, since the supernet's operations are many and small.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        _complain(error)
        return CONFIGURATION
    except (MemoryError, JobsFailedError) as error:  # while it ran: what was asked is in order
        _complain(error)
        return FAILED


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help", "help"):
        from mae_nas.cli.help import OVERVIEW

        return _say(OVERVIEW)
    if command in ("-V", "--version"):
        return _say(f"mae-nas {__version__}")
    if command in ("-sc", "--shell-completion"):
        from mae_nas.cli.completion import completion

        words = completion(rest[0] if rest else "", list(COMMANDS))
        return _say("\n".join(words)) if words else DONE
    if command not in COMMANDS:
        near = suggest(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
        raise ValueError(f"{command}: no such command{near}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own classes; last, so that it hides nothing
    return COMMANDS[command](rest)


def _start(command: str, arguments: list[str]) -> int:
    """A run of `search`, `train` or `pretrain`, or a sweep."""
    options = _options(command, arguments)
    if options.multirun and not options.help:
        return _sweep(command, options)  # which hands signals on to its jobs
    stopper = Stopper()
    try:
        with stopper.listening(stopped_by):
            return _compose_and_run(command, options, stopper)
    except KeyboardInterrupt:
        return stopped_by(stopper.received)


def _compose_and_run(command: str, options: argparse.Namespace, stopper: Stopper) -> int:
    from mae_nas.cli.compose import compose
    from mae_nas.cli.help import command_help

    if options.help:
        return _say(command_help(command))
    composed = compose(options.overrides, options.config_dir, command)
    if options.cfg:
        from omegaconf import OmegaConf

        return _say(OmegaConf.to_yaml(OmegaConf.create(composed.config)))

    if not launch.is_first(composed.config):
        decision = launch.decided(composed.config, composed.run_dir, composed.run_dir_given)
        return _ended(decision) if decision.ended else _follow(command, decision, stopper)
    from mae_nas.runs.resume import decide

    decision = decide(composed.config, composed.run_dir, composed.run_dir_given, composed.touched)
    if decision.message:
        _say(decision.message)
    if decision.ended:
        return _ended(decision)
    try:
        _say(f"mae-nas {__version__}: {command} {composed.config['name']!r}, loading torch …")
        with _loading():
            from mae_nas.cli.assemble import settle_precision
            from mae_nas.cli.check import check

            layout = import_module(f"mae_nas.cli.{command}").LAYOUT
        settle_precision(decision.config)
        check(decision.config, composed.targets if decision.read_back else None, layout)
        return _run(command, decision, options.overrides, stopper)
    finally:
        decision.folder.release()


def _sweep(command: str, options: argparse.Namespace) -> int:
    from mae_nas.cli.logs import say
    from mae_nas.cli.sweep import run_sweep

    if options.cfg:
        raise ValueError("--cfg: shows one configuration; leave out -m and choose one value each")
    text, code = run_sweep(command, options.overrides, options.config_dir)
    say(text)
    return code


def _ended(decision: "Decision") -> int:
    return COLLAPSED if decision.ended == "collapsed" else DONE


def _follow(command: str, decision: "Decision", stopper: Stopper) -> int:
    """Run as another rank: the first process judges everything and makes the folder."""
    with _loading():
        from mae_nas.cli.assemble import settle_precision

    settle_precision(decision.config)
    return _drive(command, decision, decision.folder, [], stopper)


def _drive(
    command: str,
    decision: "Decision",
    folder: "RunFolder",
    overrides: list[str],
    stopper: Stopper,
) -> int:
    from mae_nas.cli.drive import Start, drive

    prepare = import_module(f"mae_nas.cli.{command}").prepare
    return drive(prepare, Start(decision.config, overrides, folder, decision.checkpoint), stopper)


def _run(command: str, decision: "Decision", overrides: list[str], stopper: Stopper) -> int:
    """Run in the run's folder; a folder made for a run that is then refused is taken back."""
    folder = decision.open(overrides)
    if not decision.continued:
        _say(f"run folder: {folder.path}")
    try:
        return _drive(command, decision, folder, overrides, stopper)
    except (ValueError, OSError) as error:
        _complain(error)
        return CONFIGURATION if folder.discard() or decision.continued else FAILED
    except MemoryError:
        folder.discard()
        raise
    except KeyboardInterrupt:
        is_gone = folder.discard() and not decision.continued
        said = "nothing is left of it" if is_gone else f"to go on, {launch.way_on(folder.path)}"
        _complain(ValueError(f"stopped at once; {said}"))
        raise
    finally:
        folder.release()


def _answer(name: str, arguments: list[str]) -> int:
    """Run a command that prints one text: the function of its name in the module of its name."""
    module = import_module(f"mae_nas.cli.{name}")
    is_asked = not {"-h", "--help"}.isdisjoint(arguments)
    return _say(module.USAGE if is_asked else getattr(module, name)(arguments))


@contextmanager
def _loading() -> Iterator[None]:
    """Import without looking for garbage: there is none, and looking is a fifth of torch's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _options(command: str, arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"mae-nas {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-cd", "--config-dir", type=Path)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(arguments)


def _say(text: str) -> int:
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
    return DONE


def _complain(error: Exception) -> None:
    text = str(error) or ("out of memory" if isinstance(error, MemoryError) else "")
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    for line in text.splitlines() or [type(error).__name__]:
        sys.stderr.write(f"mae-nas: {line}\n")


ANSWERS = ("test", "export", "embed", "probe", "derive", "compare", "inspect", "runs")
ANSWERS += ("report", "draw", "profile", "sample", "bench")
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{name: partial(_start, name) for name in ("search", "train", "pretrain")},
    **{name: partial(_answer, name) for name in ANSWERS},
}
