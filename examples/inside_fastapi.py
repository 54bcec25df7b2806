"""An auction in FastAPI: routes and an endpoint share an application and pydantic models.

    pip install fastapi
    uvicorn examples.inside_fastapi:app

Follow the bids in a second terminal, and bid there, or by HTTP in a third:

    python -m websockets ws://127.0.0.1:8000/auctions/vase/live
    > {"type": "bid", "bidder": "ann", "cents": 1200}
    curl --json '{"bidder": "bob", "cents": 1500}' http://127.0.0.1:8000/auctions/vase/bids
"""

from typing import Literal

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, lifespan, on_message


class Bid(BaseModel):
    type: Literal["bid"] = "bid"
    bidder: str
    cents: int = Field(gt=0)


class TooLow(BaseModel):
    type: Literal["too_low"] = "too_low"
    highest: int


bids: dict[str, Bid] = {}


def accepts(item: str, bid: Bid) -> bool:
    if item in bids and bid.cents <= bids[item].cents:
        return False
    bids[item] = bid
    return True


class Live(Endpoint):
    item: FromPath[str]
    channels = ("auction:{item}",)
    sends = Bid

    @on_message
    async def bid(self, websocket: WebSocket, message: Bid) -> TooLow | None:
        if not accepts(self.item, message):
            return TooLow(highest=bids[self.item].cents)
        await self.publish(message)
        return None


app = FastAPI(lifespan=lifespan, routes=[WebSocketRoute("/auctions/{item}/live", Live)])


@app.get("/auctions/{item}")
async def highest(item: str) -> Bid | None:
    return bids.get(item)


@app.post("/auctions/{item}/bids", status_code=201)
async def place(item: str, bid: Bid, request: Request) -> Bid:
    if not accepts(item, bid):
        raise HTTPException(409, f"bid more than {bids[item].cents}")
    await request.app.state.hub.publish(f"auction:{item}", bid)
    return bid
