"""The one package that knows Flower's insides; all else uses `flwr.{app,clientapp,serverapp}`.

Written against flwr 1.41. It offers what Flower's own programs do, without their habits: nothing
here ends the process, waits for ever or raises a signal, and every error is a `LinkError`.

* `messages`: messages outside of a run that Flower started, as an own `Grid` needs them.
* `transport`: calls with a patience, errors translated, objects pushed and pulled.
* `fleet`: a device's connection to the Fleet API (in place of `flower-supernode`).
* `superlink`: the operator's connection: nodes, runs, the config-only app.
* `task`: the server's half of a run (in place of `flwr-serverapp`).

`tests/strategies/test_flower_compat.py` holds every name and signature that is used here, and
goes the whole way through a real SuperLink.
"""
