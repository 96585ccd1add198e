"""The dashboard of a Weights & Biases project of searches, as code.

    python experiments/dashboard.py --dry-run                      # print it as JSON: no account
    python experiments/dashboard.py --project mae-nas --entity me  # save it there

Runs are grouped by sweep. Metrics are drawn over our own `step`, the names are those of metrics.csv
and of `mae_nas.search.reading.reading_row`.
"""

import argparse
import sys

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from mae_nas.checks import first_line

SETTINGS = ("mask.ratio", "mask.patch_size")
RESULTS = ("held_out_loss", "skips_normal", "skips_reduce")
COLUMNS = ("verdict", *RESULTS, "chance_skips_normal", "chance_skips_reduce")
COLUMNS += ("entropy_normal", "entropy_reduce", "beats_yardsticks", "wall_seconds")


def curves(title: str, *names: str) -> wr.LinePlot:
    """Metrics over our steps."""
    return wr.LinePlot(title=title, x="step", y=list(names))


def dashboard(entity: str, project: str) -> ws.Workspace:
    """What a sweep over the mask is looked at with; built without an account."""
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in SETTINGS]
    axes += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in RESULTS]
    sweep = ws.Section(
        name="Sweep",
        is_open=True,
        panels=[
            wr.ParameterImportancePlot(with_respect_to="held_out_loss"),
            wr.ParallelCoordinatesPlot(title="Mask, loss and skips", columns=axes),
            *(
                wr.ScatterPlot(title=f"{y} over {x}", x=wr.Config(x), y=wr.SummaryMetric(y))
                for x in SETTINGS
                for y in RESULTS[:2]
            ),
        ],
    )
    collapse = ws.Section(
        name="Skips beside chance",
        is_open=True,
        panels=[
            *(
                wr.BarPlot(
                    title=f"Skips of the {kind} cell and the mean of noise",
                    metrics=[f"skips_{kind}", f"chance_skips_{kind}"],
                )
                for kind in ("normal", "reduce")
            ),
            curves("Skips of the normal cell", "skips_normal", "chance_skips_normal"),
            curves("Relative entropy of α", "entropy_normal", "entropy_reduce"),
        ],
    )
    losses = ws.Section(
        name="Losses",
        is_open=True,
        panels=[
            curves("Held-out loss", "held_out_loss"),
            curves("Loss of both steps", "weight_loss", "arch_loss"),
        ],
    )
    media = ["reconstructions", "cells", "alpha", "alpha_history", "losses"]
    pictures = ws.Section(name="Pictures", panels=[wr.MediaBrowser(media_keys=media)])
    columns = [_column(key) for key in SETTINGS] + [f"summary:{name}" for name in COLUMNS]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Searches",
        sections=[sweep, collapse, losses, pictures],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")], pinned_columns=["run:displayName", *columns]
        ),
    )


def _column(key: str) -> str:
    """How wandb addresses a configuration's key among the columns of its table."""
    section, dot, rest = key.partition(".")
    return f"config:{section}.value{dot}{rest}"


def main() -> int:
    """Print or save it."""
    parser = argparse.ArgumentParser(description="make the dashboard of a project of searches")
    parser.add_argument("--project", default="mae-nas")
    parser.add_argument("--entity", default="", help="user or team; by default your own")
    parser.add_argument("--dry-run", action="store_true", help="print it as JSON, send nothing")
    options = parser.parse_args()
    if options.dry_run:
        spec = dashboard(options.entity, options.project)._model  # what `save` sends
        sys.stdout.write(spec.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
        return 0
    wandb.setup(wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False, verify=False):
            raise wandb.Error("not logged in; run `wandb login` first, or look with --dry-run")
        entity = options.entity or wandb.Api(timeout=20).default_entity or ""
        sys.stdout.write(f"{dashboard(entity, options.project).save().url}\n")
    except (wandb.Error, OSError, ValueError) as error:
        sys.stderr.write(f"dashboard: {first_line(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
