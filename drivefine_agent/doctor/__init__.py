"""Is this machine, this NAVSIM and this data set fit for use, and if not, what to do?

`run.run_checks` is the whole of it; `tools/doctor.py` prints what it returns. This package's own imports are
light and each check is imported when it runs, so that a broken library is a finding and no traceback.
The two files named `*_probe.py` run in the interpreter that is examined, Python 3.9 or later, without this
package.
"""
