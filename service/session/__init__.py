"""Sessions, pure: which rows a rank gets at a step, and which reports are missing. No I/O, no asyncio."""
