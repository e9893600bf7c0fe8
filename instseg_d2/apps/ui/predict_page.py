"""The page "Predict": files, a model, a threshold and classes; the picture, what the network sees, and the table."""

import os

import gradio as gr

from .found import COLUMNS, LOWEST, Item, Session, detect_files
from .messages import guarded, report_to, warn
from .models import Models

__all__ = ["PredictPage"]

MAX_WARNINGS = 3
EMPTY = "Drop photos or a video to begin."
NOTHING = "Nothing to explain: this model has no such pictures, or it found no objects."


class PredictPage:
    """Lays out the page in the current `gr.Blocks`."""

    def __init__(self, models: Models):
        self.models = models
        session = Session(root=os.environ.get("GRADIO_TEMP_DIR"))
        self.session = gr.State(session, delete_callback=Session.clear)
        self.index, self.explaining = gr.State(0), gr.State(False)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._controls()
            with gr.Column(scale=3, min_width=400):
                self._results()
        self._events()

    def _controls(self) -> None:
        names = list(self.models.paths())
        self.model = gr.Dropdown(names, value=names[0] if names else None, label="Model", elem_id="model")
        self.files = gr.File(
            label="Photos or a video", file_count="multiple", type="filepath", height=180, elem_id="files"
        )
        self.threshold = gr.Slider(LOWEST, 1, 0.5, step=0.01, label="Score at least", elem_id="threshold")
        self.classes = gr.Dropdown([], multiselect=True, label="Classes", info="none chosen: all", elem_id="classes")
        self.save_picture = gr.DownloadButton("Save the picture", interactive=False, elem_id="save-picture")
        self.save_results = gr.DownloadButton("Save results.json", interactive=False, elem_id="save-results")

    def _results(self) -> None:
        self.summary = gr.HTML(EMPTY, elem_id="summary")
        self.thumbnails = gr.Gallery(
            columns=8,
            height=120,
            allow_preview=False,
            show_label=False,
            visible=False,
            elem_id="thumbnails",
            buttons=[],
        )
        with gr.Tabs():
            with gr.Tab("Picture") as self.picture_tab:
                self.picture = gr.Image(
                    type="filepath",
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    height=600,
                    elem_id="picture",
                )
                self.video = gr.Video(
                    show_label=False, interactive=False, visible=False, height=600, buttons=[], elem_id="video"
                )
            with gr.Tab("Explain") as self.explain_tab:
                self.note = gr.HTML("What the network sees in a photo.", elem_id="note")
                self.panels = gr.Gallery(
                    columns=3, show_label=False, object_fit="contain", height="auto", elem_id="panels", buttons=[]
                )
            with gr.Tab("Table") as self.table_tab:
                self.table = gr.Dataframe(
                    headers=COLUMNS[1:],
                    interactive=False,
                    show_label=False,
                    max_height=600,
                    elem_id="table",
                    buttons=[],
                )

    def _events(self) -> None:
        shown = [
            self.summary, self.thumbnails, self.picture, self.video, self.table, self.save_picture, self.save_results,
        ]  # fmt: skip
        options = [self.session, self.index, self.threshold, self.classes]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        explained = {"fn": self.explain, "inputs": [self.session, self.index, self.explaining]}
        explained = {**explained, "outputs": [self.note, self.panels], "api_visibility": "private"}
        detected = gr.on(
            [self.files.change, self.model.change],
            self.detect,
            [self.session, self.model, self.files],
            [self.session, self.index, self.thumbnails, self.classes],
            show_progress_on=[self.picture],
            trigger_mode="always_last",
            api_visibility="private",
        )
        detected.then(self.show, options, shown, **quiet).then(**explained)
        gr.on(
            [self.threshold.change, self.classes.change], self.show, options, shown, trigger_mode="always_last", **quiet
        )
        picked = self.thumbnails.select(self.pick, None, self.index, **quiet)
        picked.then(self.show, options, shown, **quiet).then(**explained)
        for tab in (self.picture_tab, self.table_tab):
            tab.select(lambda: False, None, self.explaining, **quiet)
        self.explain_tab.select(lambda: True, None, self.explaining, **quiet).then(**explained)

    @guarded
    def detect(self, session: Session, model: str, files, progress=gr.Progress()):  # noqa: B008 (Gradio looks for it)
        """Run the network on the files."""
        session.items, session.model = [], model
        if files:
            with self.models.use(model) as predictor:
                session.items, faults = detect_files(predictor, files, report_to(progress))
            for fault in faults[:MAX_WARNINGS]:
                warn(fault)
            if len(faults) > MAX_WARNINGS:
                warn(f"{len(faults) - MAX_WARNINGS} more files cannot be used.")
        names = {r["category_name"] for item in session.items for r in item.results(0, ())}
        thumbnails = [item.thumbnail for item in session.items]
        return session, 0, thumbnails, gr.Dropdown(sorted(names), value=[])

    @guarded
    def show(self, session: Session, index: int, threshold: float, classes: list):
        """Draw the chosen item."""
        if index >= len(session.items):
            off = gr.DownloadButton(interactive=False, value=None)
            views = gr.Image(None, visible=True), gr.Video(None, visible=False), gr.Dataframe([], headers=COLUMNS[1:])
            return EMPTY, gr.Gallery(visible=False), *views, off, off
        item: Item = session.items[index]
        picture, results, fault = session.write(index, threshold, classes)
        if fault:
            warn(fault)
        save = f"Save the {'video' if item.video else 'picture'}"
        return (
            item.summary(threshold, classes),
            gr.Gallery(visible=len(session.items) > 1),
            gr.Image(None if item.video else picture, visible=not item.video),
            gr.Video(picture if item.video else None, visible=item.video),
            gr.Dataframe(item.rows(threshold, classes), headers=COLUMNS[not item.video :]),
            gr.DownloadButton(save, value=picture, interactive=picture is not None),
            gr.DownloadButton(value=results, interactive=True),
        )

    def pick(self, event: gr.SelectData):
        """The index of the chosen thumbnail."""
        return event.index

    @guarded
    def explain(self, session: Session, index: int, explaining: bool):
        """What the network sees, if the tab is open."""
        if not explaining:
            return gr.skip()
        if index >= len(session.items):
            return gr.HTML(EMPTY, visible=True), []
        item: Item = session.items[index]
        if item.video:
            return gr.HTML("Explain works on photos alone.", visible=True), []
        with self.models.use(session.model) as predictor:
            panels = predictor.explain(item.image(), channel_order="RGB")
        return gr.HTML(NOTHING, visible=not panels), [(picture, title) for title, picture in panels]
