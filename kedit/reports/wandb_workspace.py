"""A dashboard on the wandb server for the runs of kedit: python -m kedit.reports.wandb_workspace --entity NAME.

It makes a saved view of the project, of all cells or of one sweep's (docs/wandb.md, "A dashboard"), and prints its
address. Needs the extra `dashboard` (wandb-workspaces), a key and a server; `--show` prints what would be made.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from kedit.common.errors import InputError, first_line
from kedit.common.terminal import use_safe_output
from kedit.loop.tracker import EDITS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

SCORES = ("hm", "edit_success", "generality", "portability", "locality", "fluency")  # keys of a run's summary
COLUMNS = ("config:editor", "config:T", "config:seed", *(f"summary:{name}" for name in SCORES), "summary:failed_edits")
OPTIONS = ("editor.lr", "editor.steps", "editor.loss.epsilon")
PICTURES = ("radar", "retention", "scatter", "bars", "losses", "tokens")
SMOOTHED = 0.8  # one edit's own score is 0 or 100


def workspace(entity: str, project: str = "kedit", sweep: str | None = None) -> "Workspace":
    """The dashboard, not yet on a server. `sweep`: of its cells alone."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config, Metric, Ordering, Summary

    cells = 'Tags not in ["all cells"]' + (f' and Metric("Group") == "{sweep}"' if sweep else "")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"kedit: {sweep or 'all sweeps'}",
        sections=[_scores(), _history(), _costs(), _options(), _pictures()],
        settings=ws.WorkspaceSettings(x_axis=EDITS, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=cells,
            groupby=[Metric("Group"), Config("editor")],
            order=[Ordering(Summary("hm"), ascending=False)],
            pinned_columns=list(COLUMNS),
        ),
    )


def _section(name: str, *panels: Any) -> "Section":
    import wandb_workspaces.workspaces as ws

    layout = ws.SectionLayoutSettings(columns=3, rows=1 + (len(panels) - 1) // 3)
    return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def _scores() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    by_editor: dict[str, Any] = {"groupby": wr.Config("editor"), "groupby_aggfunc": "mean"}
    cost = wr.ScatterPlot(
        title="What an edit costs elsewhere", x=wr.SummaryMetric("edit_success"), y=wr.SummaryMetric("locality")
    )
    bars = [
        wr.BarPlot(title=name, metrics=[wr.Metric(name)], groupby_rangefunc="stddev", **by_editor) for name in SCORES
    ]
    return _section("Scores of the last test", cost, *bars)


def _line(title: str, *names: str, **how: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    by_editor: dict[str, Any] = {"groupby": wr.Config("editor"), "groupby_rangefunc": "stderr"}
    return wr.LinePlot(title=title, x=wr.Metric(EDITS), y=[wr.Metric(name) for name in names], **by_editor, **how)


def _history() -> "Section":
    smooth: dict[str, Any] = {"smoothing_type": "exponential", "smoothing_factor": SMOOTHED}
    return _section(
        "Over the edits",
        _line("Does every edit take?", "edit/edit_success", **smooth),
        _line("What stays of them", "test/edit_success", "test/generality", "test/portability"),
        _line("What they change elsewhere", "test/locality"),
        _line("Perplexity of a held-out text", "perplexity", log_y=True),
        _line("Change of the weights", "weight_change", log_y=True),
    )


def _costs() -> "Section":
    return _section("What an edit needs", _line("Optimiser steps", "steps"), _line("Seconds", "edit_s"))


def _options() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in OPTIONS]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("hm")))
    return _section("Which options matter", wr.ParallelCoordinatesPlot(title="Options and HM", columns=columns))


def _pictures() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    return _section("Pictures", *(wr.MediaBrowser(title=name, media_keys=[name]) for name in PICTURES))


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(
        prog="python -m kedit.reports.wandb_workspace", description="Make a dashboard of kedit's runs on wandb."
    )
    parser.add_argument("--entity", required=True, help="the user or team that the project belongs to")
    parser.add_argument("--project", default="kedit", help="default: kedit")
    parser.add_argument("--sweep", help="only this sweep's cells")
    parser.add_argument("--show", action="store_true", help="print the view as JSON, and change nothing on a server")
    given = parser.parse_args()
    try:
        view = workspace(given.entity, given.project, given.sweep)
        sys.stdout.write(f"{as_json(view) if given.show else _saved(view)}\n")
    except ImportError:
        sys.exit("a dashboard needs wandb-workspaces; pip install 'kedit[dashboard]'")
    except InputError as error:
        sys.exit(str(error))


def as_json(view: "Workspace") -> str:
    """The view as the server would keep it."""
    return json.dumps(view._to_model().model_dump(mode="json", by_alias=True), indent=1)


def _saved(view: "Workspace") -> str:
    try:
        return view.save().url
    except Exception as error:
        raise InputError(f"wandb did not take the dashboard ({first_line(error)}); run `wandb login` first") from error


if __name__ == "__main__":
    main()
