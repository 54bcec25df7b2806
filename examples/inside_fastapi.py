"""An auction in FastAPI: routes and an endpoint share an application and pydantic models.

    pip install fastapi
    uvicorn examples.inside_fastapi:app

Follow the bids in a second terminal, and bid there, or by HTTP in a third:

    python -m websockets ws://127.0.0.1:8000/auctions/vase/live
    > {"type": "bid", "bidder": "ann", "cents": 1200}
    curl --json '{"bidder": "bob", "cents": 1500}' http://127.0.0.1:8000/auctions/vase/bids
"""

from typing import Literal

from fastapi import FastAPI, HTTPException, Request, WebSocket
from pydantic import BaseModel, Field

from chatserver import Endpoint, FromPath, lifespan, on_message


class Bid(BaseModel):
    type: Literal["bid"] = "bid"
    bidder: str
    cents: int = Field(gt=0)


app = FastAPI(lifespan=lifespan)
bids: dict[str, Bid] = {}


def accepts(item: str, bid: Bid) -> bool:
    if item not in bids or bid.cents > bids[item].cents:
        bids[item] = bid
    return bids[item] is bid


@app.websocket("/auctions/{item}/live")
class Live(Endpoint):
    item: FromPath[str]
    channels = ("auction:{item}",)
    history = 1  # a client gets the highest bid when it comes
    sends = Bid

    @on_message
    async def bid(self, websocket: WebSocket, message: Bid) -> Bid | None:
        if not accepts(self.item, message):
            return bids[self.item]  # the reply says what is to be outbid
        await self.publish(message)
        return None


@app.post("/auctions/{item}/bids", status_code=201)
async def place(item: str, bid: Bid, request: Request) -> Bid:
    if not accepts(item, bid):
        raise HTTPException(409, f"bid more than {bids[item].cents}")
    await request.app.state.hub.publish(f"auction:{item}", bid)
    return bid
