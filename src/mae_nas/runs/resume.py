"""Which run a command line means: a new one, an interrupted one, or one that is done."""

import copy
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mae_nas.keys import ABSENT, find, is_inside, leaves
from mae_nas.runs.files import read_json, remove_unfinished
from mae_nas.runs.folder import RunFolder

ALWAYS_GIVEN = ("logger",)
"""Sections always taken from the command line: a stranger's run must not start an upload."""
FREE = (
    *ALWAYS_GIVEN,
    "efficiency",
    "hydra",
    "resume",
    "left_out",
    "trainer.max_steps",
    "trainer.checkpoint_seconds",
    "trainer.preflight",
    "data.root",  # a hash in the checkpoint tells the images apart, wherever they lie
    "data.cache",
)
"""Keys, with all below them, that change no result and so may change when a run continues."""
PLACES = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Keys that change no result either where BatchNorm is synchronised."""

Config = dict[str, object]


@dataclass(frozen=True)
class Decision:
    """What to do, before anything is written."""

    config: Config  # the composed one, or the stored one with what may change
    folder: RunFolder  # locked when the run is continued, to be made when it is new
    exact: bool = True  # whether the user chose a new run's folder
    continued: bool = False  # whether `folder` holds the run already
    checkpoint: Path | None = None  # to continue from; None: from the start
    message: str = ""  # for the user
    ended: str = ""  # "finished" or "collapsed" when nothing is left to do
    read_back: bool = False  # whether `config` comes from a file rather than from the user

    def open(self, overrides: Sequence[str]) -> RunFolder:
        """The folder, made if need be, locked, with the configuration in it."""
        if self.continued:
            self.folder.lock()
            return self.folder
        folder = RunFolder.new(self.folder.path, self.exact)
        try:
            folder.write_config(self.config, overrides)
        except OSError:
            folder.discard()
            raise
        return folder


def decide(
    config: Config, run_dir: Path, run_dir_given: bool, touched: Sequence[str] = ()
) -> Decision:
    """Apply `config["resume"]`: null, auto or PATH.

    Args:
        config: composed.
        run_dir: resolved `hydra.run.dir`.
        run_dir_given: whether the user chose it.
        touched: keys and sections that the command line sets ("" is everything); with PATH only
            these are compared, the rest is the stored configuration's.

    Raises:
        ValueError: the folder or checkpoint cannot be used, or its configuration differs (a line
            for each key).
    """
    resume = config.get("resume")
    if resume is not None and not isinstance(resume, str):
        raise ValueError(f"resume: {resume!r} is not null, auto or a path")
    if resume is None:
        return _start(config, run_dir, run_dir_given)
    if resume != "auto":
        return _continue_path(config, Path(resume), run_dir if run_dir_given else None, touched)
    if not run_dir_given:
        return _continue_newest(config, run_dir)
    folder = RunFolder(run_dir)
    if not folder.is_run():
        return _start(config, run_dir, exact=True)
    return _continue(config, folder, _stored_alike(folder, config))


def follow(config: Config, run_dir: Path) -> Decision:
    """What `decide` makes of the same command line on the first of several nodes.

    Nothing is held, and a new run's folder may be there already: the first node may be ahead.
    """
    folder = RunFolder(run_dir)
    if config["resume"] is None or not folder.is_run():
        return Decision(config, folder)
    return _continue(config, folder, _stored_alike(folder, config), is_ours=False)


def config_hash(config: Mapping[str, object]) -> str:
    """BLAKE2b of all keys that may change a result, as canonical JSON: 32 hexadecimal digits."""
    text = json.dumps(_binding(config, _free(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(
    stored: Mapping[str, object],
    given: Mapping[str, object],
    touched: Sequence[str] | None = None,
) -> list[str]:
    """A line for each key that may change a result and does; `touched` limits it to those keys."""
    free = _free(stored)
    old, new = _binding(stored, free), _binding(_adopt(given, stored), free)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        compared = touched is None or (key in new and _is_touched(key, touched))
        if compared and old.get(key, ABSENT) != new.get(key, ABSENT):
            pair = f"{_say(old, key)}, this command line {_say(new, key)}"
            lines.append(f"{key}: the run has {pair}")
    return lines


def _start(config: Config, path: Path, exact: bool) -> Decision:
    folder = RunFolder(path)
    if exact:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; hydra.run.dir names a folder")
        folder.refuse_unless_empty()
    return Decision(config, folder, exact=exact)


def _continue_newest(config: Config, run_dir: Path) -> Decision:
    """The newest run beside `run_dir` that is of this configuration, unfinished and not held."""
    configs = [(path.stat().st_mtime_ns, path) for path in run_dir.parent.glob("*/config.json")]
    for _, path in sorted(configs, reverse=True):
        folder = RunFolder(path.parent)
        try:
            stored = folder.read_config()
            is_other = differences(stored, config) or _ended(folder, stored, config)
            if is_other or not folder.try_lock():
                continue
        except (ValueError, OSError):
            continue  # damaged, or not ours to read: not the run that is meant
        return _continue(config, folder, stored)
    message = "no unfinished run like this: a new one"
    return Decision(config, RunFolder(run_dir), exact=False, message=message)


def _continue_path(
    config: Config, path: Path, run_dir: Path | None, touched: Sequence[str]
) -> Decision:
    if not path.exists():
        raise ValueError(f"resume: {path} does not exist; name a run folder or a checkpoint")
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    if not path.is_dir() and (path.parent.name != "checkpoints" or not folder.config.exists()):
        raise ValueError(f"resume: {path} is not a checkpoint in a run folder (RUN/checkpoints/)")
    if run_dir is not None and run_dir.resolve() != folder.path.resolve():
        raise ValueError(f"hydra.run.dir: a run continues where it is, {folder.path}; leave it out")
    stored = _stored_alike(folder, config, touched)
    merged = _merge(stored, config, touched)
    decision = _continue(merged, folder, stored, None if path.is_dir() else path)
    return replace(decision, read_back=True)


def _continue(
    config: Config,
    folder: RunFolder,
    stored: Config,
    checkpoint: Path | None = None,
    is_ours: bool = True,  # to hold
) -> Decision:
    config = _adopt(config, stored)
    ended = _ended(folder, stored, config)
    if ended:
        message = f"{folder.path} is {ended}: nothing to do"
        return Decision(config, folder, continued=True, ended=ended, message=message)
    if checkpoint is None and folder.checkpoint.exists():
        checkpoint = folder.checkpoint
    if checkpoint is not None and not zipfile.is_zipfile(checkpoint):
        raise ValueError(f"{checkpoint} is not a checkpoint, or was cut short")
    if is_ours:
        folder.lock()
        remove_unfinished(folder.path)
    where = f"from {checkpoint}" if checkpoint else "from the start (no checkpoint yet)"
    message = f"continuing {folder.path} {where}"
    return Decision(config, folder, continued=True, checkpoint=checkpoint, message=message)


def _adopt(config: Mapping[str, object], stored: Mapping[str, object]) -> Config:
    """`config` with what the run chose: a precision left open, the parts that fit its memory."""
    asked, own = config.get("trainer"), stored.get("trainer")
    if not (isinstance(asked, dict) and isinstance(own, dict)):
        return dict(config)
    chosen = ["precision"] if asked.get("precision") == "auto" else []
    chosen += ["accumulate"] if own.get("fit_batch") is True else []
    return {**config, "trainer": asked | {key: own[key] for key in chosen if key in own}}


def _stored_alike(
    folder: RunFolder, config: Config, touched: Sequence[str] | None = None
) -> Config:
    """The configuration in `folder`, refused where it differs from the given one."""
    stored = folder.read_config()
    lines = differences(stored, config, touched)
    if lines:
        head = f"{folder.path} cannot continue with another configuration:"
        raise ValueError("\n".join([head, *lines]))
    return stored


def _ended(folder: RunFolder, stored: Config, config: Config) -> str:
    """How the run ended, unless by a `trainer.max_steps` that has been raised since."""
    summary = read_json(folder.summary) if folder.summary.exists() else None
    state = find(summary, "state")
    if state == "collapsed":
        return "collapsed"
    limit = find(summary, "config.trainer.max_steps")
    limit = find(stored, "trainer.max_steps") if limit is ABSENT else limit
    wanted = find(config, "trainer.max_steps")
    raised = isinstance(limit, int) and (not isinstance(wanted, int) or wanted > limit)
    return "finished" if state == "finished" and not raised else ""


def _merge(stored: Config, given: Config, touched: Sequence[str]) -> Config:
    """The stored configuration, with what may change and was given."""
    merged = copy.deepcopy(stored)
    for key in _free(stored):
        section, _, name = key.rpartition(".")
        home, value = find(merged, section), find(given, key)
        replaced = key in ALWAYS_GIVEN or _is_touched(key, touched)
        if replaced and isinstance(home, dict) and value is not ABSENT:
            cast("Config", home)[name] = value
    return merged


def _is_touched(key: str, touched: Sequence[str]) -> bool:
    return is_inside(key, touched) or any(is_inside(one, [key]) for one in touched)


def _free(config: Mapping[str, object]) -> tuple[str, ...]:
    """Keys of a run that may change when it continues."""
    return FREE + PLACES if find(config, "trainer.sync_batchnorm") is True else FREE


def _binding(config: Mapping[str, object], free: Sequence[str]) -> dict[str, object]:
    """Leaves that may change a result, as JSON gives them back."""
    plain = cast("Config", json.loads(json.dumps(config)))
    return {key: value for key, value in leaves(plain) if not is_inside(key, free)}


def _say(values: Mapping[str, object], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
