"""Programs that a sandbox must contain, each with what its observation must say (a regular expression).

`{canary}` is the path of a file that must not come to be, `{secret}` of a file that must not be read. Where TIME may be
said, no machine ends the program within a second; it runs under a short limit, and the others under one that no machine
reaches.
"""

TIME, MEMORY, DENIED = "TimeoutError: time limit", "MemoryError: memory limit", "PermissionError"
MISSING = "ModuleNotFoundError|ImportError"

HOSTILE: dict[str, tuple[str, str]] = {
    # loops
    "endless loop": ("while True: pass", TIME),
    "long sum": ("sum(range(10**12))", TIME),
    "loop that swallows errors": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        TIME,
    ),
    "endless generator": ("def f():\n    while True: yield 1\nsum(f())", f"{TIME}|NotImplementedError"),
    "nested loops": ("n = 0\nfor a in range(10**5):\n    for b in range(10**5): n += 1\nn", TIME),
    "exponential recursion": ("def f(n): return 1 if n < 2 else f(n - 1) + f(n - 2)\nf(60)", TIME),
    "long factorial": ("import math\nmath.factorial(10**9)", f"{TIME}|{MEMORY}"),
    "regex that backtracks": ("import re\nprint(re.match('(a|aa)+$', 'a' * 100 + 'b'))", "None|Error"),
    "sleep": ("import time\ntime.sleep(3600)", "no output|Error"),
    "asleep": ("import asyncio\nasyncio.run(asyncio.sleep(3600))", "no output|Error"),
    "prints for ever": ("while True: print('spam')", TIME),
    # memory
    "huge list": ("[0] * 10**10", MEMORY),
    "growing list": ("x = []\nwhile True: x.append('a' * 1000)", f"{MEMORY}|{TIME}"),
    "doubling list": ("x = [1]\nwhile True: x += x", MEMORY),
    "doubling string": ("x = 'a'\nwhile True: x += x", MEMORY),
    "growing dictionary": ("d = {}\nn = 0\nwhile True:\n    n += 1\n    d[n] = str(n) * 100", f"{MEMORY}|{TIME}"),
    "power tower": ("10**10**10", MEMORY),
    "huge shift": ("1 << 10**13", MEMORY),
    "repeated squaring": ("x = 7\nwhile True: x = x * x", f"{MEMORY}|{TIME}"),
    "wide format": ("'%1000000000d' % 3", MEMORY),
    "wide f-string": ("f'{1:>10000000000}'", "Error"),
    "padded string": ("'a'.ljust(10**11)", MEMORY),
    "huge bytes": ("bytes(10**12)", "Error"),
    "list of a huge range": ("list(range(10**11))", f"{MEMORY}|{TIME}"),
    "join": ("','.join(['a' * 10**5] * 10**5)", MEMORY),
    "replace": ("('a' * 10**6).replace('a', 'b' * 10**6)", MEMORY),
    "nested containers": ("x = []\nfor _ in range(10**9): x = [x, x]", f"{MEMORY}|{TIME}"),
    "big integer in decimal": ("str(7 ** 200000)", "ValueError|Error"),
    # depth
    "deep recursion": ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
    "mutual recursion": ("def f(n): return g(n)\ndef g(n): return f(n)\nf(0)", "RecursionError"),
    "deep parentheses": ("(" * 3000 + "1" + ")" * 3000, "SyntaxError"),
    "deep brackets in eval": ("eval('[' * 50000 + ']' * 50000)", "Error"),
    "deep value": ("x = []\nfor _ in range(200000): x = [x]\nx", r"\[\[|Error"),
    "value that holds itself": ("x = []\nx.append(x)\nx", r"\.\.\.|Error"),
    "deep comparison": ("a = []\nb = []\nfor _ in range(100000):\n    a = [a]\n    b = [b]\na == b", "Error|True"),
    "endless attribute": ("class A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\nA().a", "Error"),
    # output
    "huge print": ("print('a' * 10**6)", r"a\.\.\."),
    "many lines": ("for i in range(5000): print(i)", r"0\n1\n2"),
    "huge value": ("list(range(10000))", r"\[0, 1, 2.*\.\.\."),
    "control characters": (r"print('\x1b[2J\x00\x07bell')", "bell"),
    "fences": ("print('```')\nprint('```python')\nprint('1')", "'''"),
    "end of sequence": ("print('<eos>')", "<eos>"),
    "lone surrogate": (r"print('\ud800')", "."),
    "direction marks": (r"print('\u202e\u2066abc')", "abc"),
    # files
    "reads a file": ("open('{secret}').read()", DENIED),
    "writes a file": ("open('{canary}', 'w').write('x')", DENIED),
    "appends to a file": ("f = open('{canary}', 'a')\nf.write('x')", DENIED),
    "path reads": ("from pathlib import Path\nPath('{secret}').read_text()", DENIED),
    "path writes": ("from pathlib import Path\nPath('{canary}').write_text('x')", DENIED),
    "makes a folder": ("from pathlib import Path\nPath('{canary}').mkdir()", DENIED),
    "lists a folder": ("import os\nos.listdir('/')", "Error"),
    "removes a file": ("import os\nos.remove('{secret}')", "Error"),
    "reads the environment": ("import os\nos.environ['HOME']", "Error"),
    "proc": ("open('/proc/self/environ').read()", DENIED),
    "shutil": ("import shutil\nshutil.rmtree('/')", MISSING),
    "sqlite": ("import sqlite3\nsqlite3.connect('{canary}')", MISSING),
    # network and processes
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", MISSING),
    "urllib": ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1')", MISSING),
    "subprocess": ("import subprocess\nsubprocess.run(['touch', '{canary}'])", MISSING),
    "os.system": ("import os\nos.system('touch {canary}')", "AttributeError"),
    "os.fork": ("import os\nwhile True: os.fork()", "AttributeError"),
    "os.kill": ("import os\nos.kill(os.getppid(), 9)", "AttributeError"),
    "threads": ("import threading\nthreading.Thread(target=print).start()", MISSING),
    "multiprocessing": ("import multiprocessing\nmultiprocessing.Pool(100)", MISSING),
    "ctypes": ("import ctypes\nctypes.string_at(0)", MISSING),
    "signal": ("import signal\nsignal.alarm(1)", MISSING),
    # ways out of the language
    "__import__": ("__import__('os').system('touch {canary}')", "NameError"),
    "exec": ("exec(\"open('{canary}', 'w')\")", DENIED),
    "compile": ("compile('1', 'x', 'eval')", "Error"),
    "subclasses": ("().__class__.__base__.__subclasses__()", "Error"),
    "builtins": ("print.__self__.open('{canary}', 'w')", "Error"),
    "frames": ("import sys\nsys._getframe(0).f_back.f_globals", "Error"),
    "globals of a function": ("def f(): pass\nf.__globals__['os']", "Error"),
    "importlib": ("import importlib\nimportlib.import_module('os').system('ls')", "Error"),
    "pickle": ("import pickle\npickle.loads(b'cos\\nsystem\\n(S\"ls\"\\ntR.')", MISSING),
    "sys.exit": ("import sys\nsys.exit(0)", "Error"),
    "SystemExit": ("raise SystemExit(0)", "Error|SystemExit"),
    "quits": ("quit()", "Error"),
    "asks for input": ("input('name? ')", "Error"),
    "syntax error": ("def f(:", "SyntaxError"),
    "null byte": ("x = 1\x00", "Error"),
    "not Python": ("SELECT * FROM users;", "SyntaxError"),
}
