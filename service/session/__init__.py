"""Sessions, pure: which rows a rank gets at a step, which reports are missing, and the methods. No I/O, no asyncio."""
