"""The inner part of `kube2iam demo`, started by it in new namespaces."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up yet: end quietly
    from kube2iam.demo.world import inside

    sys.exit(inside(sys.argv[1:]))
