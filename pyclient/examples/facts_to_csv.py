"""Write the facts of every node to a CSV file.

    python facts_to_csv.py facts.csv
"""

import csv
import sys

from jsclient import Client


def main(path: str) -> int:
    with Client() as client:
        nodes = client.target("all")
        # All three commands are sent before the first answer is read.
        systems, cpus, memories = nodes.info("os"), nodes.info("cpu"), nodes.info("mem")
        facts = {}
        for fleet in (systems, cpus, memories):
            for result in fleet.wait(30).results.values():
                if result.ok:
                    facts.setdefault(result.node, {}).update(result.value)
    columns = ["node", "hostname", "name", "version", "kernel", "arch", "logical", "mhz", "total", "agent"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"node": node, **fact} for node, fact in sorted(facts.items()))
    print(f"{len(facts)} nodes in {path}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) <= 1:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
