"""Run the commands of README.md, LESSON.md and results/README.md anew; put the output below each.

    python results/readme.py        # from the folder of README.md, as `make readme` does

A table stands between its command, <!-- python fit.py ... -->, and <!-- end -->; a test asserts
that nothing changes.
"""
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = re.compile(r"<!-- (python .+?) -->\n.*?<!-- end -->", re.DOTALL)


def run(command):
    """What a command prints, with this interpreter; stops where it fails."""
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True,
                          encoding="utf-8")
    if done.returncode:
        sys.exit(f"{command}\n{done.stderr.strip()}")
    return done.stdout.strip()


def main():
    paths = [Path("README.md"), Path("LESSON.md"), Path("results/README.md")]
    texts = {path: path.read_text("utf-8") for path in paths}
    commands = set(BLOCK.findall("\n".join(texts.values())))
    with ThreadPoolExecutor(2) as pool:
        printed = dict(zip(commands, pool.map(run, commands)))
    for path, text in texts.items():
        anew = BLOCK.sub(
            lambda found: f"<!-- {found[1]} -->\n{printed[found[1]]}\n<!-- end -->", text)
        path.write_text(anew, "utf-8")


if __name__ == "__main__":
    main()
