"""Serves the page."""

import ipaddress
import signal
import socket
import sys
import threading
import urllib.parse
from collections.abc import Sequence

import gradio as gr

from ...errors import ConfigError
from .dataset import DataSet
from .dataset_page import DataSetPage
from .models import Models
from .predict_page import PredictPage

__all__ = ["build", "serve", "start"]

# Fonts of the visitor's system: nothing comes from the network.
THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1500px !important; width: 100%; margin: auto }
#title h1 { font-size: 1.35rem; margin: .2rem 0 }
#title span { color: var(--body-text-color-subdued); font-weight: normal }
#title h1 { padding: 0 .2rem }
#thumbnails .thumbnail-item { height: 84px; width: 84px; aspect-ratio: 1 }
#thumbnails .grid-container { grid-template-columns: repeat(auto-fill, 84px) !important }
#picture img { width: 100%; height: 100%; object-fit: contain }
#panels .grid-wrap, #annotated .grid-wrap, #mistakes .grid-wrap, #pair .grid-wrap { max-height: none }
#model input, #judged input { text-overflow: ellipsis; padding-right: 1.5rem }
footer { display: none !important }
"""
TITLE = "<h1>instseg <span>&middot; instance segmentation</span></h1>"
CLEANED_EVERY, KEPT = 3600, 86400  # seconds that uploads and pictures stay in the temporary folder
PATIENCE = 5  # seconds that a running network has at the end
NO_DATA = "Start with `--data NAME`, or `--json FILE --images DIR`, to see a data set here."


def build(models: Models, data: Sequence[DataSet] = ()) -> gr.Blocks:
    """The page."""
    with gr.Blocks(
        analytics_enabled=False, title="instseg", fill_width=True, delete_cache=(CLEANED_EVERY, KEPT)
    ) as page:
        gr.HTML(TITLE, elem_id="title")
        with gr.Tabs():
            with gr.Tab("Predict"):
                predict = PredictPage(models)
            with gr.Tab("Data set") as tab:
                dropdowns = [predict.model]
                if data:
                    dropdowns.append(DataSetPage(data, models, tab).model)
                else:
                    gr.Markdown(NO_DATA)
        # Models that were trained since the program started.
        for dropdown in dropdowns:  # one event each: Gradio takes a list for a single output as its value
            page.load(
                lambda: gr.Dropdown(list(models.paths())),
                None,
                dropdown,
                show_progress="hidden",
                api_visibility="private",
            )
    return page


def _free_port(host: str, port: int) -> int:
    """The port, or any free one for 0; ConfigError if the page cannot be served there."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port is {port}; it must be between 0 (any free port) and 65535.")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"the page cannot be served at {host}, port {port} ({reason}): see --host, --port."
        ) from error


def start(page: gr.Blocks, host: str, port: int, max_upload_mb: int) -> str:
    """Serve in other threads; returns the address. Gradio serves no file but uploads and what the page shows."""
    port = _free_port(host, port)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload_mb * 2**20,
        allowed_paths=[],
        share=False,
        quiet=True,
        inbrowser=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
        prevent_thread_lock=True,
    )
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _greeting(host: str, address: str) -> str:
    """Where the page is and who can use it."""
    bound = ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0].split("%")[0])
    if bound.is_unspecified:  # every address of this machine
        address = f"http://{socket.gethostname()}:{urllib.parse.urlsplit(address).port}"
    text = f"Open {address} in a browser. Ctrl-C ends the program.\n"
    return text if bound.is_loopback else f"{text}Anyone on the network can use this page.\n"


def serve(page: gr.Blocks, models: Models, host: str, port: int, max_upload_mb: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = start(page, host, port, max_upload_mb)
    sys.stdout.write(_greeting(host, address))
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        sys.stdout.write("Stopped.\n")
    finally:
        page.close(verbose=False)
        models.finish(PATIENCE)
