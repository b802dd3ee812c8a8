"""Policies and plans need no torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_policies():
    out = run(
        "from headforce.policy import Chunk, Policy, load_ops, oracle\n"
        "policy = Policy.load('examples/policies/static_dynamic.yaml')\n"
        "load_ops()\n"
        "print(sorted(oracle.read(policy.rule_of(0, 0), policy.warmup, Chunk(9, 27, 3), 27)))"
    )
    assert out.strip() == "[0, 18, 24, 26]"


def test_plans():
    out = run(
        "from headforce.policy import Policy, Schedule, parse_rule\n"
        "import headforce.draw, headforce.lowering.plan\n"
        "from headforce.lowering.footprint import footprint\n"
        "from headforce.lowering.preview import to_json\n"
        "policy = Policy.load('examples/policies/static_dynamic.yaml')\n"
        "bound = policy.bind(layers=3, heads=4, native=parse_rule('span(21)'))\n"
        "chunks = Schedule.parse('3x4')\n"
        "print(len(to_json(bound, chunks, footprint(bound, chunks, 8))['chunks']))"
    )
    assert out.strip() == "4"


def test_command_line():
    run("from headforce.cli import main\nmain(['plan', 'examples/policies/static_dynamic.yaml', '--layers', '3'])")
