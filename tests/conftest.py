"""Settings for the whole suite."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs on several processes; threads of torch would only fight

# A shell starts what it puts into the background with Ctrl-C ignored, and so would every process of these tests be.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
