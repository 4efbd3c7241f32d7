"""A client of libpq 18, by ctypes: logs in once, with a token for the OAuth hook if there is one, and says as JSON how
it went. Reads one JSON object from standard input: library, conninfo, token (or null), sql."""

import ctypes
import json
import sys

BEARER_TOKEN = 1  # PGAUTHDATA_OAUTH_BEARER_TOKEN, libpq-fe.h
TUPLES_OK = 2  # PGRES_TUPLES_OK


class BearerRequest(ctypes.Structure):
    """PGoauthBearerRequest of libpq-fe.h."""

    _fields_ = [
        ("openid_configuration", ctypes.c_char_p),
        ("scope", ctypes.c_char_p),
        ("poll", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("token", ctypes.c_char_p),
        ("user", ctypes.c_void_p),
    ]


HOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def main():
    asked = json.load(sys.stdin)
    pq = ctypes.CDLL(asked["library"])
    for name in ("PQconnectdb", "PQexec"):
        getattr(pq, name).restype = ctypes.c_void_p
    for name in ("PQerrorMessage", "PQgetvalue", "PQresultErrorMessage"):
        getattr(pq, name).restype = ctypes.c_char_p
    hooks = []
    token = None if asked["token"] is None else asked["token"].encode()

    def hand_over(kind, _connection, data):
        if kind != BEARER_TOKEN or token is None:
            return 0
        request = ctypes.cast(data, ctypes.POINTER(BearerRequest)).contents
        hooks.append([
            None if text is None else text.decode()
            for text in (request.openid_configuration, request.scope)
        ])
        request.token = token
        return 1

    hook = HOOK(hand_over)
    pq.PQsetAuthDataHook.argtypes = [HOOK]
    pq.PQsetAuthDataHook(hook)
    connection = ctypes.c_void_p(pq.PQconnectdb(asked["conninfo"].encode()))
    answer = {"version": pq.PQlibVersion(), "ok": pq.PQstatus(connection) == 0, "hooks": hooks, "rows": []}
    answer["error"] = pq.PQerrorMessage(connection).decode()
    for sql in asked["sql"] if answer["ok"] else []:
        result = ctypes.c_void_p(pq.PQexec(connection, sql.encode()))
        if pq.PQresultStatus(result) == TUPLES_OK:
            answer["rows"].append(pq.PQgetvalue(result, 0, 0).decode())
        else:
            answer["rows"].append(pq.PQresultErrorMessage(result).decode())
        pq.PQclear(result)
    pq.PQfinish(connection)
    json.dump(answer, sys.stdout)


main()
