"""A client in batch mode, for tests that run it in processes of their own."""

from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger, Reply
from core.expert.settings import ExpertSettings
from tests.core.expert.asking import IMAGES, requests
from tests.core.expert.asking import settings as online_settings

N = 12


def settings(url: str, **changes) -> ExpertSettings:
    return online_settings(url, **({"mode": "batch", "batch_poll_s": 0.05} | changes))


def ask(database: str, url: str) -> list[Reply]:
    config = settings(url, max_requests=N)
    ledger = Ledger(open_database(database), ttl_s=1.0)
    return ExpertClient(config, ledger=ledger, run="tuesday").ask(requests(config, N), IMAGES.__getitem__)
