"""What README.md shows of the program, made by running it: the recording, the picture, the output.

    python docs/scripts/readme.py [terminal] [page] [text]

terminal: docs/pictures/terminal.svg, a session with the bundled model (needs pyte and the extra
`chat`). page: docs/pictures/page.png, the chat page in Chromium (needs playwright and the extra
`server`). text: what the commands of README's block `console` print. Without a word all three.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS, ROWS = 104, 26
QUESTION = "What is a lighthouse?"
CONVERSATION = ("Who are you?", "What is love?", "What is a florbin?")
CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.M | re.S)


def environment(folder):
    """The variables of a user whose home is this folder and who has `bitnet` on the path."""
    command = Path(folder, "bitnet")
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m bitnet "$@"\n')
    command.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BITNET_", "XDG_"))}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return inherited | {
        "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "PS1": "$ ",
        "PYTHONPATH": os.pathsep.join(paths), "BITNET_NUM_THREADS": "1",
    }  # fmt: skip


def record(variables):
    """The terminal's frames of a question, and of a conversation."""
    from terminal import Terminal

    with Terminal(COLUMNS, ROWS, variables) as terminal:
        terminal.wait_for("$ ")
        terminal.pause(0.6)
        for line, until in (
            (f'bitnet run "{QUESTION}"', "$ "),
            ("bitnet chat", "> "),
            *((words, "> ") for words in CONVERSATION),
            ("/exit", "$ "),
        ):
            terminal.keys(line)
            terminal.pause(0.3)
            terminal.enter()
            terminal.wait_for(until)
            terminal.pause(1.2)
    return terminal.frames


def draw_terminal(variables):
    from terminal import svg

    title = "bitnet, with the model that comes with it"
    text = svg(record(variables), COLUMNS, title)
    (PICTURES / "terminal.svg").write_text(text, "utf-8")


def draw_page(variables):
    """The page after two questions, as it looks in a window of 1100 x 660."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    command = ["bitnet", "serve", "--port", "0"]
    server = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://\S+:\d+", line)))
        with sync_playwright() as playwright:
            options = {"executable_path": chromium} if chromium else {}
            browser = playwright.chromium.launch(args=["--no-sandbox"], **options)
            page = browser.new_page(
                viewport={"width": 1100, "height": 660}, device_scale_factor=1.5
            )
            page.goto(url)
            for words in (QUESTION, CONVERSATION[1]):
                page.locator("textarea:visible").first.fill(words)
                with page.expect_response("**/v1/chat/completions"):
                    page.keyboard.press("Enter")
                _wait_until_still(page)
            page.screenshot(path=PICTURES / "page.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _wait_until_still(page, seconds=1.5):
    """Until no word of the page has changed for so long."""
    before = None
    while before != (now := page.inner_text("body")):
        before = now
        page.wait_for_timeout(1000 * seconds)


def console_outputs(block, variables):
    """A block `console` with what its commands, the lines after `$ `, print now."""
    printed = []
    for command in re.findall(r"^\$ (.*)$", block, re.M):
        result = subprocess.run(
            ["bash", "-c", command], env=variables, capture_output=True, text=True, check=True
        )
        printed.append(f"$ {command}\n{result.stdout}")
    return "".join(printed)


def write_text(variables):
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    readme.write_text(CONSOLE.sub(lambda m: console_outputs(m[0], variables), text), "utf-8")


PARTS = {"terminal": draw_terminal, "page": draw_page, "text": write_text}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="terminal, page, text (default: all)")
    parts = parser.parse_args().parts or PARTS
    PICTURES.mkdir(exist_ok=True)
    for name in parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](environment(folder))


if __name__ == "__main__":
    main()
