"""The proof that a framework computes what the formulas say: a small Transformer, trained for three steps.

``problem.py`` holds what is trained (weights, token ids, labels), ``reference.py`` the right answer in NumPy float64,
``judge.py`` the comparison, ``bounds.py`` how far off an answer may be, ``record.py`` what is written (no numpy),
``command.py`` the command line that every framework shares.

A framework's side is a class in ``engines/`` with the three methods of `command.Side`, and::

    if __name__ == "__main__":
        raise SystemExit(command.main(MySide()))

The command calls ``side.open(device)`` once, then ``side.train(problem, case)`` for each case of `problem.CASES`, and
in the end ``side.stack()``. ``train`` starts from ``problem.weights`` (name -> float64 array that float32, and the
case's precision, hold exactly), trains ``problem.num_steps`` steps on the one batch, and returns a `judge.Observed`. It
does in the framework's own functions what ``reference.py`` describes; names, shapes and the order of operations are
written in ``problem.py``, what each precision means at `problem.Case`. An operation that the device does not have in
bfloat16 or float16 is said with `command.NotOffered`; any other error is a failure. `command.prove` and
`command.run_case` do the same without a command line.
"""
