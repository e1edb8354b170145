"""Values and rules: who is calling, which role, may it. No I/O, nothing asynchronous."""
