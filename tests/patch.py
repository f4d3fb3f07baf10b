"""A pytest plugin (`-p tests.patch`) that only patches: a conftest is too late, plugins have imported ssl by then."""

from nommerd import runtime

runtime.patch()
