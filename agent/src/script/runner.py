# Runs one script. The agent hands this text, then the script's source, then the script's data to the
# interpreter on stdin, so that no file has to be readable for the script's user.
# Arguments: the source's length, its path, the folder of its modules ("" is none), the script's own.
# Python 3.6 and later. Modules that most scripts do not need are imported when they are needed, for
# each import costs every start some milliseconds.
def run():
    import _thread
    import builtins
    import io
    import os
    import sys

    own = sys.modules["__main__"]
    size, path, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    sys.argv[:] = [path] + sys.argv[4:]
    # "-c" put the working folder in front of everything that can be imported.
    if sys.path and sys.path[0] == "":
        del sys.path[0]
    if folder:
        sys.path.insert(0, folder)

    # Exactly the source is read, so that all of the data is left for the script and its children.
    pieces = []
    while size > 0:
        piece = os.read(0, size)
        if not piece:
            os._exit(1)
        pieces.append(piece)
        size -= len(piece)
    source = b"".join(pieces)

    class Stdout(io.FileIO):
        """Knows whether a message that follows would begin a line."""

        fresh = True

        def write(self, data):
            count = super().write(data)
            if count:
                self.fresh = data[count - 1] == 10
            return count

    raw = Stdout(1, "wb", closefd=False)
    # By lines, so that a message is there when it was written, and a script that is killed loses none.
    out = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "surrogateescape", "\n", True)
    sys.stdout = sys.__stdout__ = out
    for name in ("stdin", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.encoding.lower() != "utf-8":
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8")
            else:
                errors, lines = stream.errors, name == "stderr"
                setattr(sys, name, io.TextIOWrapper(stream.detach(), "utf-8", errors, line_buffering=lines))
    lock = _thread.allocate_lock()
    most = 1 << 20

    def emit(level, text):
        if "\n" in text or text[:1] == ":":
            # A line of the text must not end the block.
            text = ("\n" + text).replace("\n:::", "\n :::")
            message = "%d:::%s\n:::\n" % (level, text)
        else:
            message = "%d::%s\n" % (level, text)
        data = message.encode("utf-8", "surrogateescape")
        with lock:
            try:
                out.flush()
            except (ValueError, OSError):
                pass
            if not raw.fresh:
                data = b"\n" + data
                raw.fresh = True
            while data:
                data = data[os.write(1, data):]

    def log(level, text):
        """Writes a message of this level: 1-11, or 20-23 for a result."""
        if not (isinstance(level, int) and (1 <= level <= 11 or 20 <= level <= 23)):
            raise ValueError("log: the level is 1-11 or 20-23, not %r" % (level,))
        emit(level, text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))

    def stat(key, value, type="g"):
        """Adds to the node's figures: type is c, g, ms, h, s or kv."""
        key, value = str(key), int(value) if isinstance(value, bool) else value
        if type not in ("c", "g", "ms", "h", "s", "kv"):
            raise ValueError("stat: the type is c, g, ms, h, s or kv, not %r" % (type,))
        if not key or any(c in key for c in ":|\n\r"):
            raise ValueError("stat: a key is not empty and has no ':', '|' or line end, not %r" % (key,))
        text = str(value)
        if not text or any(c in text for c in "|\n\r") or text.lower() in ("nan", "inf", "-inf"):
            raise ValueError("stat: %r is no value" % (value,))
        line = "%s:%s|%s" % (key, text, type)
        # A sign makes a gauge change by that much, so a number below 0 is a change from 0.
        if type == "g" and not isinstance(value, str) and text[0] == "-":
            line = "%s:0|g\n%s" % (key, line)
        emit(10, line)

    formats = {"json": 20, "yaml": 21, "toml": 22, "hrd": 23}

    def result(value, format="json"):
        """Writes the script's result; what is no text is written as JSON, which is YAML too."""
        level = formats.get(str(format).lower())
        if level is None:
            raise ValueError("result: the format is json, yaml, toml or hrd, not %r" % (format,))
        if level == 20 or (level == 21 and not isinstance(value, str)):
            import json

            try:
                text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError("result: %s" % error) from None
            try:
                length = len(text.encode())
            except UnicodeEncodeError:
                text = json.dumps(value, allow_nan=False)
                length = len(text)
        elif isinstance(value, str):
            text, length = value, len(value.encode("utf-8", "surrogateescape"))
        else:
            raise TypeError("result: give %s as text, not as %s" % (format, value.__class__.__name__))
        if length > most:
            raise ValueError("result: %d bytes are too many; the most is %d" % (length, most))
        emit(level, text)

    def uncaught(kind, error, trace):
        """An exception that nobody caught is a critical message; the interpreter ends with status 1."""
        if issubclass(kind, KeyboardInterrupt):
            return
        import linecache
        import traceback

        while trace is not None and trace.tb_frame.f_globals is own.__dict__:
            trace = trace.tb_next
        text = source.decode("utf-8", "replace")
        linecache.cache[path] = (len(text), None, text.splitlines(True), path)
        emit(9, "".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))

    sys.excepthook = uncaught
    code = compile(source, path, "exec", dont_inherit=True)
    # Where "def action" is, "if __name__ == '__main__'" is for running the script by hand.
    called = any(isinstance(c, code.__class__) and c.co_name == "action" for c in code.co_consts)
    module = sys.__class__("jumpscript" if called else "__main__")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    module.__dict__.update(
        __builtins__=builtins, __file__=path, __cached__=None, log=log, stat=stat, result=result
    )
    exec(code, module.__dict__)
    action = module.__dict__.get("action")
    if not callable(action):
        return
    data = sys.stdin.buffer.read().strip() if sys.stdin and not sys.stdin.closed else b""
    value = None
    if data:
        import json

        try:
            value = json.loads(data.decode("utf-8", "surrogateescape"))
        except ValueError as error:
            emit(9, "the data is no JSON, which action is called with: %s" % error)
            sys.exit(1)
    if isinstance(value, dict):
        value = action(**value)
    elif value is None:
        value = action()
    else:
        value = action(value)
    if value is not None:
        result(value)


run()
