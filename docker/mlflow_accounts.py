"""Give MLflow its two accounts, with the passwords that lie in the secrets now: a changed secret is a changed password.

`admin` manages accounts and may see and delete everything; `idp` is the one that sweeps write as.
"""

import sys
from pathlib import Path

from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

SECRETS = Path("/run/secrets")
ACCOUNTS = {"admin": ("mlflow_admin_password", True), "idp": ("mlflow_password", False)}


def main(database: str) -> None:
    """Create or update the accounts.

    Args:
        database: MLflow's database, where its accounts are kept too.
    """
    store = SqlAlchemyStore()
    store.init_db(database)
    for name, (secret, is_admin) in ACCOUNTS.items():
        password = (SECRETS / secret).read_text().strip()
        if not store.has_user(name):
            store.create_user(name, password, is_admin=is_admin)
        elif not store.authenticate_user(name, password):
            store.update_user(name, password=password)


if __name__ == "__main__":
    main(sys.argv[1])
