"""The certificate of a server, checked before a model is loaded."""

import ssl


def check_pair(cert: str, key: str) -> None:
    """Raise unless these are PEM files of a certificate, its chain behind it, and its key.

    OSError that names the file that cannot be read, ValueError that names the one at fault.
    """
    for path in (cert, key):
        with open(path, "rb"):
            pass

    def refuse() -> bytes:
        raise ValueError(f"tls key: {key}: is encrypted (a key without a passphrase is needed)")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"tls key: {key}: is not the key of {cert}") from None
        field, path = ("key", key) if _is_certificate(cert) else ("cert", cert)
        what = "certificate" if field == "cert" else "private key"
        raise ValueError(f"tls {field}: {path}: holds no {what} in PEM") from None


def _is_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
