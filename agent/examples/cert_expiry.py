"""Certificates: warns before they end.

    jsctl script run 1.10 ./cert_expiry.py --data '{"hosts": ["example.org:443"], "warn": 21, "critical": 7}'

Data: `hosts` ("name" or "name:port"), `files` (PEM), `warn` and `critical` (days), `timeout` (seconds).
Result: a list of {name, days, ends, state, error}. Status 1 when something is critical or cannot be read.
"""
import os
import socket
import ssl
import sys
import tempfile
import time


def end_of(pem_file):
    """When the first certificate of a PEM file ends, in seconds since 1970."""
    # The only decoder in the standard library; it is private, but has been there since 2.6.
    return ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(pem_file)["notAfter"])


def end_of_host(host, timeout):
    name, _, port = host.rpartition(":") if ":" in host else (host, "", "443")
    # A certificate that has ended is to be shown too, so nothing is verified here.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((name, int(port)), timeout) as plain:
        with context.wrap_socket(plain, server_hostname=name) as secure:
            der = secure.getpeercert(True)
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "w") as file:
            file.write(ssl.DER_cert_to_PEM_cert(der))
        return end_of(path)
    finally:
        os.unlink(path)


def action(hosts=(), files=(), warn=21, critical=7, timeout=10):
    found, failed = [], False
    for name, end in [(h, lambda h=h: end_of_host(h, timeout)) for h in hosts] + [
        (f, lambda f=f: end_of(f)) for f in files
    ]:
        try:
            ends = end()
        except (OSError, ValueError) as error:
            log(8, "%s: its certificate cannot be read: %s" % (name, error))
            found.append({"name": name, "state": "unknown", "error": str(error)})
            failed = True
            continue
        days = round((ends - time.time()) / 86400, 1)
        state = "critical" if days < critical else "warning" if days < warn else "ok"
        if state != "ok":
            log(9 if state == "critical" else 7, "%s: its certificate ends in %s days" % (name, days))
        failed = failed or state == "critical"
        stat("days." + name.replace(":", "_").strip("/").replace("/", "_"), days)
        found.append({"name": name, "days": days, "ends": int(ends), "state": state})
    result(found)
    if failed:
        sys.exit(1)
