"""The page "Data set": annotated pictures, faults, and a model's mistakes."""

import html
from collections import Counter
from collections.abc import Sequence

import gradio as gr

from ...check_data import HEADERS
from ...evaluation.mistakes import FALSE, MISSED, WRONG_CLASS
from ..results import shown_name
from .dataset import DataSet
from .found import LOWEST
from .messages import guarded, report_to, warn
from .models import Models

__all__ = ["DataSetPage"]

ALL = "all classes"
KINDS = ("all", FALSE, MISSED, WRONG_CLASS)
PICTURES, CROPS = 12, 24  # on a page
COST = (
    "Sorted by cost, the number under each picture: the score of a false detection or a wrong class; for a missed "
    "object 1, or less if it was found with a score under the threshold (1 minus that score). "
    "Masks match from an IoU of 0.5."
)


def _part_of(entries: Sequence, page: int, size: int) -> tuple[Sequence, gr.Slider]:
    """The entries of a page, counted from 1, and the slider of the pages."""
    pages = max(1, -(-len(entries) // size))
    page = min(page, pages)
    slider = gr.Slider(maximum=max(pages, 2), value=page, label=f"Page of {pages}", visible=pages > 1)
    return entries[(page - 1) * size : page * size], slider


class DataSetPage:
    """
    Lays out the page in the current `gr.Blocks`.

    Args:
        tab: the data set is first read when this tab is opened.
    """

    def __init__(self, data: Sequence[DataSet], models: Models, tab: gr.Tab):
        self.data, self.models = {one.title: one for one in data}, models
        titles = list(self.data)
        self.opened = gr.State("")
        self.name = gr.Dropdown(titles, value=titles[0], label="Data set", visible=len(titles) > 1, elem_id="data")
        self.summary = gr.HTML(elem_id="data-summary")
        with gr.Tabs():
            with gr.Tab("Annotations"):
                with gr.Row():
                    self.chosen = gr.Dropdown([ALL], value=ALL, label="Class", elem_id="data-class")
                    self.page = gr.Slider(1, 2, 1, step=1, label="Page", visible=False, elem_id="data-page")
                self.pictures = gr.Gallery(
                    columns=4, height="auto", object_fit="contain", show_label=False, elem_id="annotated", buttons=[]
                )
            with gr.Tab("Faults"):
                gr.Markdown("What `instseg check` finds. It reads every image.")
                self.check = gr.Button("Check the data set", variant="primary", elem_id="check")
                self.faults_note = gr.HTML(elem_id="faults-note")
                self.faults = gr.Dataframe(
                    headers=list(HEADERS), interactive=False, show_label=False, wrap=True, visible=False, buttons=[],
                    elem_id="faults",
                )  # fmt: skip
            with gr.Tab("Mistakes"):
                self._mistakes()
        self._events(tab)

    def _mistakes(self) -> None:
        # Detections by record, mistakes, and (data set, the model's class names, its value range).
        self.found = gr.State(({}, [], None))
        names = list(self.models.paths())
        with gr.Row(equal_height=True):
            self.model = gr.Dropdown(names, value=names[0] if names else None, label="Model", scale=2, elem_id="judged")
            self.threshold = gr.Slider(LOWEST, 1, 0.5, step=0.01, label="Score at least", elem_id="judged-threshold")
            self.limit = gr.Number(50, precision=0, minimum=1, label="Images at most", elem_id="limit")
            self.run = gr.Button("Find mistakes", variant="primary", min_width=140, elem_id="run")
        gr.Markdown(COST)
        with gr.Row():
            self.kind = gr.Radio(KINDS, value="all", show_label=False, scale=2, elem_id="kind")
            self.part = gr.Slider(1, 2, 1, step=1, label="Page", visible=False, elem_id="mistakes-page")
        self.pair = gr.Gallery(
            columns=2, height="auto", object_fit="contain", show_label=False, visible=False, elem_id="pair", buttons=[]
        )
        self.crops = gr.Gallery(
            columns=5, height="auto", object_fit="contain", allow_preview=False, show_label=False, elem_id="mistakes",
            buttons=[],
        )  # fmt: skip

    def _events(self, tab: gr.Tab) -> None:
        private = {"api_visibility": "private"}
        browse = [self.opened, self.chosen, self.page]
        opened = gr.on(
            [tab.select, self.name.change], self.open, [self.name, self.opened],
            [self.opened, self.summary, self.chosen, self.page, self.faults_note, self.faults],
            show_progress="minimal", **private,
        )  # fmt: skip
        opened.then(self.browse, browse, [self.page, self.pictures], **private)
        chosen = self.chosen.input(lambda: 1, None, self.page, show_progress="hidden", **private)
        chosen.then(self.browse, browse, [self.page, self.pictures], **private)
        self.page.input(self.browse, browse, [self.page, self.pictures], trigger_mode="always_last", **private)
        self.check.click(self.faulty, self.name, [self.faults_note, self.faults], **private)
        shown = [self.kind, self.part, self.pair, self.crops]
        judged = self.run.click(
            self.judge, [self.name, self.model, self.limit, self.threshold], [self.found, self.part], **private
        )
        listed = [self.found, self.kind, self.part]
        judged.then(self.mistakes, listed, shown, **private)
        changed = self.kind.input(lambda: 1, None, self.part, show_progress="hidden", **private)
        changed.then(self.mistakes, listed, shown, **private)
        self.part.input(self.mistakes, listed, shown, trigger_mode="always_last", **private)
        self.crops.select(self.open_mistake, listed, self.pair, scroll_to_output=True, **private)

    @guarded
    def open(self, name: str, opened: str):
        """What changes with the data set."""
        if name == opened:  # the tab was only left
            return gr.skip()
        data = self.data[name]
        summary = f"<b>{html.escape(name)}</b> &nbsp; {data.summary()}"
        choices = gr.Dropdown([ALL, *dict.fromkeys(data.class_names)], value=ALL)
        return name, summary, choices, gr.Slider(value=1), "", gr.Dataframe(visible=False)

    @guarded
    def browse(self, opened: str, chosen: str, page: int):
        """The annotated pictures of a page."""
        if not opened:  # the data set cannot be read
            return gr.skip()
        data = self.data[opened]
        indices = data.having(None if chosen == ALL else chosen)
        part, slider = _part_of(indices, page, PICTURES)
        return slider, [data.picture(index) for index in part]

    @guarded
    def faulty(self, name: str):
        """The faults of the file."""
        summary, findings = self.data[name].faults()
        note = f"{html.escape(summary)}. {'' if findings else 'Nothing found.'}"
        return note, gr.Dataframe([[shown_name(str(x)) for x in row] for row in findings], visible=bool(findings))

    @guarded
    def judge(self, name: str, model: str, limit: int, threshold: float, progress=gr.Progress()):  # noqa: B008
        """Run the model."""
        data = self.data[name]
        with self.models.use(model) as predictor:
            mistakes, found, faults = data.mistakes(
                predictor, limit or len(data.records), threshold, report_to(progress)
            )
            model_data = predictor.class_names, predictor.value_range
        if faults:
            warn(f"{len(faults)} images are left out: {faults[0]}")
        return (found, mistakes, (name, *model_data)), 1

    @staticmethod
    def _of_kind(found: tuple, kind: str, part: int) -> tuple[list, gr.Slider]:
        return _part_of([error for error in found[1] if kind in ("all", error.mistake.kind)], part, CROPS)

    @guarded
    def mistakes(self, found: tuple, kind: str, part: int):
        """The crops of a page."""
        if found[2] is None:
            return gr.skip()
        counts = Counter(error.mistake.kind for error in found[1])
        counts["all"] = len(found[1])
        choices = [(f"{name} ({counts[name]})", name) for name in KINDS]
        errors, slider = self._of_kind(found, kind, part)
        crops = self.data[found[2][0]].crops(errors, found[2][2])
        return gr.Radio(choices, value=kind), slider, gr.Gallery(visible=False), crops

    @guarded
    def open_mistake(self, found: tuple, kind: str, part: int, event: gr.SelectData):
        """The image of a mistake, as annotated and as found."""
        error = self._of_kind(found, kind, part)[0][event.index]
        title, *model_data = found[2]
        return gr.Gallery(self.data[title].side_by_side(error, found[0][error.record], *model_data), visible=True)
