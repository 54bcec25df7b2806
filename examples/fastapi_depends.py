"""Dependencies in FastAPI: HTTP routes and an endpoint share a user, and a notebook that is closed.

    pip install fastapi
    uvicorn examples.fastapi_depends:app

Write notes as ann, whose token is k-1, and read them by HTTP:

    wscat -H "Authorization: Bearer k-1" -c ws://127.0.0.1:8000/notes/live
    curl -H "Authorization: Bearer k-1" http://127.0.0.1:8000/notes
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.websockets import WebSocket

from chatserver import Endpoint, lifespan

USERS = {"k-1": ("ann", ["read", "write"]), "k-2": ("bob", ["read"])}
saved: list[str] = []

Bearer = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]


def current_user(bearer: Bearer, wanted: SecurityScopes) -> str:
    name, scopes = USERS.get(bearer.credentials, ("", []))
    if not name:
        raise HTTPException(401, "unknown token")
    if not {*wanted.scopes} <= {*scopes}:
        raise HTTPException(403, f"{name} may not {wanted.scope_str}")
    return name


async def notebook() -> AsyncIterator[list[str]]:
    notes: list[str] = []
    yield notes
    saved.extend(notes)  # when the connection has ended, unless it failed


app = FastAPI(lifespan=lifespan)


@app.websocket("/notes/live")
class Live(Endpoint[str]):
    encoding = "text"
    user: Annotated[str, Security(current_user, scopes=["write"])]
    notes: Annotated[list[str], Depends(notebook)]

    async def on_receive(self, websocket: WebSocket, data: str) -> Any:
        self.notes.append(f"{self.user}: {data}")
        return f"{len(self.notes)} notes"


@app.get("/notes")
async def read(user: Annotated[str, Security(current_user, scopes=["read"])]) -> list[str]:
    return saved
