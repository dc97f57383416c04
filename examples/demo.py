"""`make demo`: a real job from nothing. Writes some hundred requests, runs them on two local replicas of the
embedded engine, and shows where the answers are. Leaves no process behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REQUESTS = 400
SHOWN = 3
FOLDER = Path(__file__).resolve().parents[1] / "demo-output"


def main() -> int:
    """Run the demo; returns the job's exit code."""
    FOLDER.mkdir(exist_ok=True)
    requests, answers = FOLDER / "requests.jsonl", FOLDER / "answers.jsonl"
    with requests.open("w") as out:
        for number in range(REQUESTS):
            body = {
                "messages": [{"role": "user", "content": f"Tell me about the number {number}."}],
                "max_tokens": 64,
            }
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            out.write(json.dumps(line) + "\n")
    environment = os.environ | {"TANDEMN_HOME": str(FOLDER / "state")}
    environment.pop("TANDEMN_SERVER_URL", None)
    command = ["deploy", "demo/tiny", str(requests), "--slo", "10m", "--cloud", "local", "--replicas", "2"]
    try:
        code = _tandemn([*command, "--wait", "--force", "-o", str(answers)], environment)
    finally:
        _tandemn(["server", "stop"], environment)
    if code == 0:
        with answers.open() as lines:
            found = [json.loads(line) for line in lines]
        print(f"\n{len(found)} of {REQUESTS} answers in {answers}; the first {SHOWN}:")
        for answer in found[:SHOWN]:
            text = answer["response"]["body"]["choices"][0]["message"]["content"]
            print(f"  {answer['custom_id']}: {text[:60]!r}")
        print("(demo/tiny has random weights: it speaks gibberish, really computed)")
        return 0 if len(found) == REQUESTS else 1
    return code


def _tandemn(arguments: list[str], environment: dict[str, str]) -> int:
    return subprocess.run(
        [sys.executable, "-m", "tandemn.cli", *arguments], env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
