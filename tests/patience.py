"""How long a test waits for what comes in a moment: on a busy machine that may take a while, and is no fault."""

PATIENCE_S = 60.0
