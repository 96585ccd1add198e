"""`mae-nas test`: the accuracy of a trained network on its test images."""

import json
from collections.abc import Sequence

from mae_nas.cli.arguments import read_arguments

USAGE = """\
mae-nas test checkpoint=RUN|FILE [format=text|json] [data.root=...] [trainer.accelerator=...]

Accuracy of a trained network on the test images of its data set: on the device that it was trained
on, that of its training's end to the last digit.
  checkpoint   a run folder of mae-nas train, or a checkpoint in one
  data.root, data.test, data.cache   where the images lie, if elsewhere than in training
  trainer.accelerator                auto | cpu | cuda | mps
"""


def test(arguments: Sequence[str]) -> str:
    """The accuracy, or JSON."""
    keys = ("checkpoint", "data.root", "data.test", "data.cache", "trainer.accelerator")
    defaults = dict.fromkeys(keys, "") | {"format": "text"}
    options = read_arguments("test", arguments, defaults).options

    from rich.console import Console  # and torch, seconds

    from mae_nas.cli.train import accuracy_in_words
    from mae_nas.cli.trained import differing, load_trained

    trained = load_trained(options["checkpoint"], differing(options), Console(stderr=True))
    facts = trained.run.results()
    if options["format"] == "json":
        return json.dumps(facts | {"step": trained.step}, indent=1)
    by_class = facts["test_top1_by_class"].items()
    worst = sorted((share, name) for name, share in by_class if share is not None)[:5]
    said = f"{accuracy_in_words(facts)}, loss {facts['test_loss']:.4f}, step {trained.step:,}"
    return f"{said}\nworst      {', '.join(f'{name} {share:.1%}' for share, name in worst)}"
