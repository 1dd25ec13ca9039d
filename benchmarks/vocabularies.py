"""Measure how long vocabularies take to learn and to encode, their memory, and the length of their tokens.

    python benchmarks/vocabularies.py PATH [PATH ...] [--sizes 512 2048 8192] [--kinds bpe unigram wordpiece]

Each vocabulary is learned from the first nine tenths of a text in a process of its own. The row has the seconds (and
seconds of CPU) of learning, the megabytes that a second of CPU encodes, the peak of the process in megabytes,
and the characters per token of the last tenth.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from bardflow.model.vocabulary import VocabularySpec, encode, learn, vocabulary_size


def measured(path: Path, kind: str, size: int) -> dict[str, float]:
    """Learn one vocabulary in this process, encode the text, and return the figures of a row."""
    text = path.read_bytes().decode()
    cut = len(text) * 9 // 10
    spec = VocabularySpec.model_validate({"kind": kind, "size": size, "learn_from": len(text)})
    begun, used = time.perf_counter(), time.process_time()
    tokenizer = learn(lambda: [text[:cut]], spec, characters=cut, unseen=True)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - used
    rates = []
    for _ in range(3):
        used = time.process_time()
        list(encode(tokenizer, [text]))
        rates.append(len(text.encode()) / 1e6 / (time.process_time() - used))
    [held_out] = encode(tokenizer, [text[cut:]])
    return {
        "size": vocabulary_size(tokenizer),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "encoded_megabytes_a_cpu_second": max(rates),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1e6 if sys.platform == "darwin" else 1e3),
        "characters_per_token": (len(text) - cut) / len(held_out),
    }


def main() -> None:
    """Print a row for each text, size and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--kinds", nargs="+", default=["bpe", "unigram", "wordpiece"])
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)  # one row, as JSON, in this process
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(given.paths[0], given.kinds[0], given.sizes[0])))
        return
    print(f"{'text':<20}{'kind':<12}{'tokens':>7}{'learn s':>9}{'CPU s':>8}{'MB/CPU s':>13}{'peak MB':>9}  chars/token")
    for path in given.paths:
        for size in given.sizes:
            for kind in given.kinds:
                command = [sys.executable, __file__, str(path), "--sizes", str(size), "--kinds", kind, "--only"]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{path.name:<20}{kind:<12}{row['size']:>7,}{row['seconds']:>9.2f}{row['cpu_seconds']:>8.2f}"
                    f"{row['encoded_megabytes_a_cpu_second']:>13.1f}{row['peak_megabytes']:>9.0f}"
                    f"{row['characters_per_token']:>13.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
