"""What an AsyncAPI document says of the classes; test_asyncapi_parser.py has it validated."""

from typing import Annotated, Any, Literal, TypedDict

import httpx2
import pytest
from fastapi import APIRouter, Cookie, FastAPI, Header, Query, Security, security
from msgspec import Meta, defstruct
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Mount, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from chatserver import (
    Depends,
    Endpoint,
    FromCookie,
    FromHeader,
    FromPath,
    FromQuery,
    ItemEndpoint,
    Message,
    Publication,
    __version__,
    identify,
    lifespan,
    on_message,
)
from chatserver.app import create_app
from chatserver.asyncapi import asyncapi_route, describe
from chatserver.endpoints.messages import ErrorMessage
from chatserver.errors import CLOSE_CODES
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests import everything
from tests.asgi import Edge

Document = dict[str, Any]


class Say(Message):
    """Something to be said.

    Attributes:
        text: What is said.
    """

    text: str


class Said(Message):
    author: str


class Unclear(Message):
    pass


class Room(Endpoint):
    """A room to talk in.

    Everybody hears everybody.

    Attributes:
        room: The name of the room.
    """

    room: FromPath[str]
    channels = ("room:{room}",)
    sends = Said

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> Said | Unclear | None:
        """Say something.

        It is repeated to all.
        """
        return Unclear()


def document_of(cls: type[Endpoint], path: str = "/") -> Document:
    return describe(Starlette(routes=[WebSocketRoute(path, cls, name="it")]))


def keys(references: list[dict[str, str]]) -> list[str]:
    return [reference["$ref"].rpartition("/")[2] for reference in references]


def resolved(document: Document, reference: dict[str, str]) -> Any:
    found = document
    for step in reference["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


# Channels


def test_a_channel() -> None:
    document = describe(Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)]))
    assert document["asyncapi"] == "3.1.0"
    assert document["channels"] == {
        "Room": {
            "address": "/rooms/{room}",
            "title": "Room",
            "summary": "A room to talk in.",
            "description": (
                "Everybody hears everybody.\n\n"
                "While connected, a client gets what is published to `room:{room}`.\n\n"
                "A handshake is refused with the HTTP status of the reason."
            ),
            "parameters": {"room": {"description": "The name of the room."}},
            "messages": {
                key: {"$ref": f"#/components/messages/{key}"}
                for key in ("Say", "Said", "Unclear", "Ack", "ErrorMessage")
            },
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        }
    }


def test_keys_are_the_names_of_routes_and_have_the_path_where_names_collide() -> None:
    routes = [
        WebSocketRoute("/a", Room, name="chat room"),
        WebSocketRoute("/b/{x}", Room),
        WebSocketRoute("/b/{x:int}/", Room),
        WebSocketRoute("/c", Room, name="ü"),
        WebSocketRoute("/", Room, name="ü ü"),
    ]
    for route in routes:
        route.endpoint = ItemEndpoint
    channels = describe(Starlette(routes=[Mount("/{item_id}", routes=routes)]))["channels"]
    assert list(channels) == [
        "chat_room",
        "Room_item_id_b_x",
        "Room_item_id_b_x_2",
        "item_id_c",
        "item_id",
    ]


def test_mounts_hosts_routers_and_sub_applications() -> None:
    channels = describe(everything.app)["channels"]
    assert {key: channel["address"] for key, channel in channels.items()} == {
        "Every": "/in/{organisation}" + everything.EVERY.replace(":int", "").replace(":uuid", ""),
        "Anything": "/in/{organisation}/files/{rest}",
        "Silent_in_organisation_same": "/in/{organisation}/same",
        "Json": "/router/json",
        "Strings": "/fastapi/strings",
        "Bytes": "/bytes",
        "Silent_same": "/same",
        "Guarded": "/guarded",
        "Back": "/back",
        "an_item_with_and": "/items/{item_id}",
        "open_item_id": "/open/{item_id}",
        "channel": "/",
    }
    assert channels["Anything"]["parameters"] == {
        "organisation": {},
        "rest": {"description": "May contain `/`."},
    }
    assert channels["Bytes"]["description"].startswith("At the host `{customer}.example.org`.")
    assert "parameters" not in channels["Bytes"]


def test_routers_and_decorators_of_fastapi() -> None:
    class Named(Endpoint):
        room: FromPath[str]

    class Decorated(Endpoint):
        pass

    router, app = APIRouter(prefix="/{house}"), FastAPI()
    router.websocket("/rooms/{room}")(Named)
    app.websocket("/direct")(Decorated)
    outer = APIRouter(prefix="/outer")
    outer.include_router(router)
    app.include_router(outer, prefix="/v1")
    channels = describe(app)["channels"]
    assert {key: each["address"] for key, each in channels.items()} == {
        "Named": "/v1/outer/{house}/rooms/{room}",
        "Decorated": "/direct",
    }
    assert channels["Named"]["parameters"] == {"house": {}, "room": {}}


def test_facts_about_a_class() -> None:
    class Watched(Endpoint):
        channels = ("a", "b")
        presence = True
        history = 20
        subprotocols = ("v1", "v2")
        reject_as = "policy"

    channel = document_of(Watched)["channels"]["it"]
    assert "summary" not in channel
    assert channel["x-subprotocols"] == ["v1", "v2"]
    assert channel["description"].split("\n\n") == [
        "While connected, a client gets what is published to `a`, `b`.",
        "The 20 newest publications, as far as there are, come first.",
        "Others can see that a client is connected.",
        "Subprotocols: `v1`, `v2`.",
        "A handshake is refused with the HTTP status 403.",
    ]


def test_recovery() -> None:
    class Back(Endpoint):
        encoding = "json"
        recover = True
        history = 3
        q: FromQuery[int] = 1

        def welcome(self, recent: Any) -> Said:
            return Said(author="")

    document = document_of(Back)
    channel = document["channels"]["it"]
    query = channel["bindings"]["ws"]["query"]
    assert list(query["properties"]) == ["q", "since"]
    assert query["properties"]["since"]["type"] == "string"
    assert "required" not in query
    assert "`since`" in channel["description"]
    assert keys(document["operations"]["it_send"]["messages"]) == ["Standing", "Envelope"]
    envelope = document["components"]["schemas"]["Envelope"]
    assert envelope["required"] == ["channel"]
    assert envelope["properties"].keys() == {"channel", "offset", "data", "bytes"}
    assert all("description" in each for each in envelope["properties"].values())

    class Derived(Back):
        recover = False

    assert "since" not in str(document_of(Derived))


def test_a_class_without_a_docstring_has_that_of_its_base() -> None:
    class Base(Endpoint):
        """The base.

        Attributes:
            q: Of the base.
            r: Of the base.
        """

        q: FromQuery[int] = 1
        r: FromQuery[int] = 1

    class Bare(Base):
        pass

    class Own(Base):
        """Its own.

        Attributes:
            r: Its own.
        """

    assert document_of(Bare)["channels"]["it"]["summary"] == "The base."
    own = document_of(Own)["channels"]["it"]
    assert own["summary"] == "Its own."
    query = own["bindings"]["ws"]["query"]["properties"]
    assert [query[name]["description"] for name in "qr"] == ["Of the base.", "Its own."]


# Handshake values


def test_parameters_of_the_address() -> None:
    assert describe(everything.app)["channels"]["Every"]["parameters"] == {
        "organisation": {},
        "name": {"description": "Who it is."},
        "number": {"description": "An integer.", "x-schema": {"type": "integer"}},
        "colour": {
            "description": "The colours that there are.",
            "enum": ["blue", "red"],
            "x-schema": {"title": "Colour", "enum": ["blue", "red"]},
        },
        "letter": {"enum": ["a", "b"], "x-schema": {"enum": ["a", "b"]}},
        "level": {"enum": ["1", "2"], "x-schema": {"title": "Level", "enum": [1, 2]}},
        "ident": {"description": "A UUID.", "x-schema": {"type": "string", "format": "uuid"}},
    }


def test_a_parameter_of_the_route_alone() -> None:
    class Plain(Endpoint):
        pass

    channel = document_of(Plain, "/{a}/{b:int}/{c:float}/{d:uuid}/{e:path}")["channels"]["it"]
    schemas = {name: each.get("x-schema", {}) for name, each in channel["parameters"].items()}
    assert {name: each.get("type") for name, each in schemas.items()} == {
        **{"a": None, "b": "integer", "c": "number", "d": "string", "e": None}
    }


def test_what_meta_says_of_a_parameter() -> None:
    class Shelf(Endpoint):
        number: FromPath[Annotated[int, Meta(ge=1, description="From 1.", examples=[7])]]
        only: FromPath[Literal["x"]]

    parameters = document_of(Shelf, "/{number}/{only}")["channels"]["it"]["parameters"]
    assert parameters["number"]["description"] == "From 1."
    assert parameters["number"]["examples"] == ["7"]
    assert parameters["number"]["x-schema"]["minimum"] == 1
    assert parameters["only"] == {"enum": ["x"], "x-schema": {"const": "x"}}


def test_query() -> None:
    binding = describe(everything.app)["channels"]["Every"]["bindings"]["ws"]
    assert binding["query"]["required"] == ["required"]
    assert binding["query"]["properties"] == {
        "count": {
            "type": "integer",
            "minimum": 1,
            "description": "How many.",
            "examples": [3],
            "default": 3,
        },
        "tags": {"type": "array", "items": {"type": "string"}, "default": []},
        "pair": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": [{"type": "integer"}, {"type": "string"}],
            "additionalItems": False,
            "default": [1, "a"],
        },
        "when": {"type": "string"},
        "most": {"type": "number"},
        "shade": {
            "title": "Colour",
            "description": "The colours that there are.",
            "enum": ["blue", "red"],
            "default": "red",
        },
        "required": {"anyOf": [{"type": "integer"}, {"const": "x"}]},
    }


def test_headers_and_cookies() -> None:
    class Client(Endpoint):
        x_request_id: FromHeader[str]
        user_agent: FromHeader[str | None] = None
        session: FromCookie[str]
        theme: FromCookie[Literal["dark", "light"]] = "light"

    assert document_of(Client)["channels"]["it"]["bindings"]["ws"]["headers"] == {
        "type": "object",
        "properties": {
            "X-Request-Id": {"type": "string"},
            "User-Agent": {"type": "string"},
            "Cookie": {
                "type": "string",
                "description": "Cookies that are read: `session`, `theme`.",
                "x-cookies": {
                    "type": "object",
                    "properties": {
                        "session": {"type": "string"},
                        "theme": {"enum": ["dark", "light"], "default": "light"},
                    },
                    "required": ["session"],
                },
            },
        },
        "required": ["X-Request-Id", "Cookie"],
    }


def test_a_cookie_that_may_be_absent() -> None:
    class Client(Endpoint):
        theme: FromCookie[str] = "light"

    headers = document_of(Client)["channels"]["it"]["bindings"]["ws"]["headers"]
    assert list(headers["properties"]) == ["Cookie"]
    assert "required" not in headers


def test_what_dependencies_ask_for() -> None:
    async def page(
        limit: int, room: str, number: Annotated[int, Query(ge=1, alias="n")] = 1
    ) -> Any:
        """Needs no request."""

    async def reader(
        page: Annotated[Any, Depends(page)],
        websocket: WebSocket,
        language: FromQuery[str],
        x_key: Annotated[str, Header()],
        under_score: Annotated[str, Header(convert_underscores=False)],
        session: Annotated[str | None, Cookie()] = None,
    ) -> Any: ...

    class Room(Endpoint):
        """A room.

        Attributes:
            language: What is spoken.
        """

        language: FromQuery[Literal["en", "de"]] = "en"
        user: Annotated[Any, Depends(reader)]

    channel = document_of(Room, "/{room}")["channels"]["it"]
    assert channel["parameters"] == {"room": {}}
    binding = channel["bindings"]["ws"]
    assert binding["query"] == {
        "type": "object",
        "properties": {
            "language": {"enum": ["de", "en"], "description": "What is spoken."},
            "limit": {"type": "integer"},
            "n": {"type": "integer", "minimum": 1, "default": 1},
        },
        "required": ["language", "limit"],
    }
    assert binding["headers"]["required"] == ["X-Key", "Under_score"]
    assert list(binding["headers"]["properties"]) == ["X-Key", "Under_score", "Cookie"]


# Operations and messages


def test_operations_of_typed_messages() -> None:
    document = describe(Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)]))
    assert list(document["operations"]) == ["Room_say", "Room_send"]
    say, send = document["operations"].values()
    assert say == {
        "action": "receive",
        "channel": {"$ref": "#/channels/Room"},
        "summary": "Say something.",
        "description": "It is repeated to all.",
        "messages": [{"$ref": "#/channels/Room/messages/Say"}],
        "reply": {
            "channel": {"$ref": "#/channels/Room"},
            "messages": [
                {"$ref": "#/channels/Room/messages/Said"},
                {"$ref": "#/channels/Room/messages/Unclear"},
                {"$ref": "#/channels/Room/messages/Ack"},
            ],
        },
    }
    assert send["action"] == "send"
    assert keys(send["messages"]) == ["Said", "ErrorMessage"]


def test_messages() -> None:
    components = describe(Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)]))["components"]
    assert components["messages"]["Say"] == {
        "name": "say",
        "title": "Say",
        "summary": "Something to be said.",
        "payload": {"$ref": "#/components/schemas/Say"},
        "contentType": "application/json",
        "correlationId": {"$ref": "#/components/correlationIds/id"},
    }
    assert components["correlationIds"]["id"]["location"] == "$message.payload#/id"
    assert components["schemas"]["Say"] == {
        "title": "Say",
        "description": "Something to be said.",
        "type": "object",
        "properties": {
            "type": {"const": "say"},
            "text": {"type": "string", "description": "What is said."},
        },
        "required": ["type", "text"],
    }


def test_a_class_that_answers_invalid_messages_itself_sends_no_error_message() -> None:
    class Strict(Room):
        async def on_invalid(self, websocket: WebSocket, error: Any) -> None:
            await websocket.close(4000)

    document = document_of(Strict, "/{room}")
    assert keys(document["operations"]["it_send"]["messages"]) == ["Said"]
    assert ErrorMessage.__name__ not in document["components"]["schemas"]


def test_a_handler_and_an_operation_of_one_name() -> None:
    class Plain(Endpoint):
        @on_message
        async def receive_(self, websocket: WebSocket, message: Say) -> None: ...

    routes = [WebSocketRoute("/", Plain, name="a"), WebSocketRoute("/b", Plain, name="a_receive")]
    operations = describe(Starlette(routes=routes))["operations"]
    assert list(operations) == ["a_receive_", "a_send", "a_receive_receive_", "a_receive_send"]


FRAMES = [("text", ["text"]), ("bytes", ["binary"]), ("json", ["json"]), (None, ["text", "binary"])]


@pytest.mark.parametrize(("encoding", "expected"), FRAMES)
def test_a_class_without_handlers_has_plain_messages(encoding: Any, expected: list[str]) -> None:
    async def on_receive(self: Any, websocket: WebSocket, data: Any) -> None:
        """Take it."""

    cls = type("Plain", (Endpoint,), {"encoding": encoding, "on_receive": on_receive})
    document = document_of(cls)
    receive, send = document["operations"]["it_receive"], document["operations"]["it_send"]
    assert receive["summary"] == "Take it."
    assert (receive["action"], send["action"]) == ("receive", "send")
    assert keys(receive["messages"]) == keys(send["messages"]) == expected
    assert "reply" not in receive


def test_plain_messages() -> None:
    class Plain(Endpoint):
        pass

    class Json(Endpoint):
        encoding = "json"

    routes = [WebSocketRoute("/a", Plain), WebSocketRoute("/b", Json)]
    document = describe(Starlette(routes=routes))
    assert list(document["operations"]) == ["Plain_send", "Json_send"]
    found = {
        key: (message["contentType"], message["payload"])
        for key, message in document["components"]["messages"].items()
    }
    assert found == {
        "text": ("text/plain", {"type": "string"}),
        "binary": ("application/octet-stream", {"type": "string", "format": "binary"}),
        "json": ("application/json", {}),
    }


class Exact(BaseModel, extra="forbid"):
    user_name: str = Field(alias="userName")


def test_a_model_that_forbids_other_fields_is_described_with_the_type() -> None:
    class Shop(Endpoint):
        @on_message
        async def exact(self, websocket: WebSocket, message: Exact) -> None: ...

    payload = document_of(Shop)["components"]["messages"]["Exact"]["payload"]
    assert payload["additionalProperties"] is False
    assert list(payload["properties"]) == ["type", "id", "userName"]
    assert payload["properties"]["type"] == {"const": "exact"}
    assert payload["required"] == ["type", "userName"]


class Order(TypedDict):
    number: int


ANNOTATED: list[tuple[Any, Any, Any, list[str], list[str]]] = [
    ("json", Order, list[Order] | None, ["Order"], ["list_Order"]),
    ("json", "Order", "Said | str", ["Order"], ["Said", "str"]),
    ("json", "Nowhere", "Nowhere", ["json"], []),
    ("text", Any, str, ["text"], ["text"]),
    (None, bytes, dict[str, Any], ["binary"], ["dict_str_Any"]),
]


@pytest.mark.parametrize(("encoding", "data", "answer", "received", "replied"), ANNOTATED)
def test_annotations_of_on_receive(
    encoding: Any, data: Any, answer: Any, received: list[str], replied: list[str]
) -> None:
    async def on_receive(self: Any, websocket: WebSocket, data: Any) -> Any: ...

    on_receive.__annotations__.update({"data": data, "return": answer})
    cls = type("Shop", (Endpoint,), {"encoding": encoding, "on_receive": on_receive})
    document = document_of(cls)
    receive = document["operations"]["it_receive"]
    assert keys(receive["messages"]) == received
    assert keys(receive.get("reply", {}).get("messages", [])) == replied


def test_what_hooks_are_annotated_to_send() -> None:
    class Hooks(Room):
        history = 3

        def welcome(self, recent: Any) -> list[Said]:
            return []

        def last_will(self) -> Unclear:
            return Unclear()

    document = document_of(Hooks, "/{room}")
    sent = keys(document["operations"]["it_send"]["messages"])
    assert sent == ["Said", "list_Said", "Unclear", "ErrorMessage"]
    assert "newest publications" not in document["channels"]["it"]["description"]
    items = document["components"]["messages"]["list_Said"]["payload"]["items"]
    assert resolved(document, items)["title"] == "Said"


def test_publications_are_no_message() -> None:
    class Quiet(Endpoint):
        sends = Publication
        history = 1

        def welcome(self, recent: Any) -> list[Publication]:
            return []

    assert document_of(Quiet)["operations"] == {}


def test_replies_under_postponed_annotations() -> None:
    from tests.test_postponed_annotations import Room as Postponed

    say = document_of(Postponed, "/{room}")["operations"]["it_say"]
    assert keys(say["reply"]["messages"]) == ["Ack"]


def test_ids() -> None:
    class Numbered(Message):
        id: int

    class Order(Message):
        pass

    class Taken(Message):
        pass

    class Shop(Endpoint):
        sends = Said

        @on_message
        async def numbered(self, websocket: WebSocket, message: Numbered) -> Unclear | None: ...

        @on_message
        async def order(self, websocket: WebSocket, message: Order) -> Taken:
            return Taken()

        @on_message
        async def say(self, websocket: WebSocket, message: Say) -> None: ...

    document = document_of(Shop)
    replies = {
        key: keys(each["reply"]["messages"])
        for key, each in document["operations"].items()
        if "reply" in each
    }
    assert replies == {"it_numbered": ["Unclear"], "it_order": ["Taken"], "it_say": ["Ack"]}
    messages = document["components"]["messages"]
    correlated = {key for key, message in messages.items() if "correlationId" in message}
    assert correlated == {"Order", "Taken", "Say", "Ack", "ErrorMessage"}


def test_no_ids_without_handlers_that_take_them() -> None:
    assert "correlationIds" not in document_of(ItemEndpoint, "/{item_id}")["components"]


# Schemas


def test_classes_of_one_name_get_distinct_schemas() -> None:
    def handler(kind: Any) -> Any:
        async def take(self: Any, websocket: WebSocket, message: Any) -> None: ...

        take.__annotations__["message"] = kind
        return on_message(take)

    def fields(name: str) -> dict[str, Any]:
        return {name: (int, ...), "type": (Literal[name], ...)}

    structs = [
        defstruct("Item", [(name, int)], bases=(Message,), module=name, tag=name)
        for name in ("shop", "garden")
    ]
    models = [create_model("Item", __module__=name, **fields(name)) for name in ("attic", "cellar")]
    handlers = {f"take_{n}": handler(kind) for n, kind in enumerate([*structs, *models])}
    document = document_of(type("Store", (Endpoint,), handlers))
    assert sorted(document["components"]["schemas"]) == [
        *("Ack", "ErrorMessage", "attic__Item", "cellar__Item", "garden.Item", "shop.Item"),
    ]
    assert sorted(document["components"]["messages"]) == sorted(document["components"]["schemas"])
    for name, key in [("shop", "shop.Item"), ("cellar", "cellar__Item")]:
        assert name in document["components"]["schemas"][key]["properties"]


def test_a_struct_and_a_model_of_one_name() -> None:
    class Part(BaseModel):
        n: int

    class Whole(BaseModel):
        type: Literal["whole"]
        parts: list[Part]

    class Mixed(Endpoint):
        sends = defstruct("Part", [("text", str)])

        @on_message
        async def take(self, websocket: WebSocket, message: Whole) -> None: ...

    document = document_of(Mixed)
    schemas = document["components"]["schemas"]
    assert list(schemas["Part"]["properties"]) == ["text"]
    items = schemas["Whole"]["properties"]["parts"]["items"]
    assert list(resolved(document, items)["properties"]) == ["n"]


def test_the_type_that_a_model_leaves_out() -> None:
    messages = describe(everything.app)["components"]["messages"]
    typed = {"type": "object", "properties": {"type": {"const": "wave"}}, "required": ["type"]}
    wave = {"$ref": "#/components/schemas/Wave"}
    assert (messages["Wave"]["name"], messages["Wave"]["payload"]) == (
        "wave",
        {"allOf": [wave, typed]},
    )
    assert messages["Wave_2"]["payload"] == wave  # it is sent as it is
    assert messages["Quiet"]["payload"] == {"$ref": "#/components/schemas/Quiet"}
    assert messages["Loud"]["payload"]["allOf"][1]["properties"] == {"type": {"const": "loud"}}


def test_a_model_that_is_only_sent_has_its_computed_fields() -> None:
    schemas = describe(everything.app)["components"]["schemas"]
    assert "double" in schemas["Sum"]["properties"]
    assert "length" not in schemas["Loud"]["properties"]


def test_a_model_is_described() -> None:
    loud = describe(everything.app)["components"]["schemas"]["Loud"]
    assert loud["description"] == "A loud one."
    assert loud["properties"]["part"] == {
        "allOf": [{"$ref": "#/components/schemas/Part"}],
        "description": "A part.",
    }


def keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema).union(*map(keywords, schema.values()))


def test_the_dialect_is_draft_07() -> None:
    document = describe(everything.app)
    found = keywords([document["components"], document["channels"]])
    assert not found & {"prefixItems", "$defs", "discriminator", "unevaluatedProperties"}
    assert "additionalItems" in found


def test_a_type_that_has_no_schema_is_any_json() -> None:
    class Odd(Endpoint):
        sends = (set[complex], everything.Custom, list[int])

    messages = document_of(Odd)["components"]["messages"]
    assert messages["Custom"]["payload"] == {"title": "Custom"}
    assert messages["list_int"]["payload"] == {"type": "array", "items": {"type": "integer"}}


def test_a_field_of_a_model_that_has_no_schema_is_any_json() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        custom: everything.Custom
        number: int

    class Sends(Endpoint):
        sends = Odd

    odd = document_of(Sends)["components"]["schemas"]["Odd"]
    assert odd["properties"] == {
        "custom": {"title": "Custom"},
        "number": {"title": "Number", "type": "integer"},
    }
    assert odd["required"] == ["custom", "number"]


# Security


def secured(document: Document) -> bool:
    found = {bool(each.get("security")) for each in document["operations"].values()}
    assert len(found) == 1
    assert found == {"securitySchemes" in document["components"]}
    return found.pop()


def test_security() -> None:
    document = document_of(ItemEndpoint, "/{item_id}")
    assert secured(document)
    schemes = document["components"]["securitySchemes"]
    references = [f"#/components/securitySchemes/{name}" for name in schemes]
    assert document["operations"]["it_send"]["security"] == [{"$ref": r} for r in references]
    places = [(each["type"], each.get("in"), each.get("name")) for each in schemes.values()]
    assert places == [
        ("http", None, None),
        ("httpApiKey", "cookie", "session"),
        ("httpApiKey", "header", "Sec-WebSocket-Protocol"),
        ("httpApiKey", "query", "token"),
    ]


class ByHelper(Endpoint):
    async def authenticate(self, websocket: WebSocket) -> Any:
        return await self.who(websocket)

    async def who(self, websocket: WebSocket) -> Any:
        return [await self.identify(websocket) for _ in range(1)]


class BySuper(ByHelper):
    async def authenticate(self, websocket: WebSocket) -> Any:
        return await super().authenticate(websocket)


class Replaced(BySuper):
    async def authenticate(self, websocket: WebSocket) -> Any:
        return None


class WithoutAny(Endpoint):
    pass


ASKS = [(ByHelper, True), (BySuper, True), (Replaced, False), (WithoutAny, False)]


@pytest.mark.parametrize(("cls", "asks"), ASKS)
def test_whether_a_class_asks_for_a_token(cls: type[Endpoint], asks: bool) -> None:
    assert secured(document_of(cls)) is asks


class InDependency(Endpoint):
    user: Annotated[Any, Depends(identify)]


async def current_user(connection: HTTPConnection) -> Any:
    return await identify(connection)


async def active_user(user: Annotated[Any, Depends(current_user)]) -> Any:
    return user


class InNestedDependency(Endpoint):
    user: Annotated[Any, Depends(active_user)]


@pytest.mark.parametrize("cls", [InDependency, InNestedDependency])
def test_a_dependency_that_asks_for_a_token(cls: type[Endpoint]) -> None:
    assert secured(document_of(cls))


SECURITY: list[tuple[Any, dict[str, Any]]] = [
    (
        security.HTTPBearer(bearerFormat="JWT"),
        {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    ),
    (
        security.HTTPBasic(description="Ask."),
        {"type": "http", "scheme": "basic", "description": "Ask."},
    ),
    (security.APIKeyHeader(name="X-Key"), {"type": "httpApiKey", "in": "header", "name": "X-Key"}),
    (security.APIKeyQuery(name="key"), {"type": "httpApiKey", "in": "query", "name": "key"}),
    (
        security.OAuth2PasswordBearer(tokenUrl="https://id.example/token", scopes={"a": "All."}),
        {
            "type": "oauth2",
            "flows": {
                "password": {
                    "tokenUrl": "https://id.example/token",
                    "availableScopes": {"a": "All."},
                }
            },
        },
    ),
    (
        security.OAuth2PasswordBearer(tokenUrl="token"),
        {"type": "http", "scheme": "bearer", "description": "A token from `token`."},
    ),
    (
        security.OpenIdConnect(openIdConnectUrl="https://id.example/about"),
        {"type": "openIdConnect", "openIdConnectUrl": "https://id.example/about"},
    ),
]


@pytest.mark.parametrize(("scheme", "expected"), SECURITY, ids=lambda value: type(value).__name__)
def test_security_objects_of_fastapi(scheme: Any, expected: dict[str, Any]) -> None:
    class Guarded(Endpoint):
        key: Annotated[Any, Depends(scheme)]

    document = document_of(Guarded)
    assert secured(document)
    assert document["components"]["securitySchemes"] == {type(scheme).__name__: expected}


def test_scopes() -> None:
    absolute = security.OAuth2PasswordBearer(tokenUrl="https://id.example/token")
    bearer = security.HTTPBearer()

    async def writer(
        one: Annotated[Any, Depends(absolute)], two: Annotated[Any, Depends(bearer)]
    ) -> Any: ...

    class Guarded(Endpoint):
        user: Annotated[Any, Security(writer, scopes=["read", "write"])]

    document = document_of(Guarded)
    inline, reference = document["operations"]["it_send"]["security"]
    assert inline["scopes"] == ["read", "write"]
    assert reference == {"$ref": "#/components/securitySchemes/HTTPBearer"}


def test_two_schemes_of_one_name() -> None:
    class Two(Endpoint):
        one: Annotated[Any, Depends(security.APIKeyHeader(name="X-One"))]
        two: Annotated[Any, Depends(security.APIKeyHeader(name="X-Two"))]
        three: Annotated[Any, Depends(security.APIKeyHeader(name="X-One"))]

    schemes = document_of(Two)["components"]["securitySchemes"]
    assert {key: each["name"] for key, each in schemes.items()} == {
        "APIKeyHeader": "X-One",
        "APIKeyHeader_2": "X-Two",
    }


# The whole document


def test_close_codes() -> None:
    document = document_of(WithoutAny)
    assert [row["code"] for row in document["x-close-codes"]] == list(CLOSE_CODES)
    for row in CLOSE_CODES.values():
        assert f"| {row.code} | {row.meaning} |" in document["info"]["description"]


def test_info_of_the_ready_application() -> None:
    info = describe(create_app(Settings()))["info"]
    assert (info["title"], info["version"]) == ("chatserver", __version__)
    assert info["description"].startswith("Real-time channels over WebSocket.\n\n### Close codes")


def test_info_of_an_application_that_says_nothing() -> None:
    info = document_of(WithoutAny)["info"]
    assert (info["title"], info["version"]) == ("WebSocket endpoints", "0.1.0")
    assert set(info) == {"title", "version", "description"}


def test_info_of_fastapi() -> None:
    app = FastAPI(title="Shop", version="2.0", description="Sells.", license_info={"name": "MIT"})
    app.state.asyncapi_info = {"version": "3.0", "contact": {"name": "Ann"}}
    info = describe(app)["info"]
    assert info.pop("description").startswith("Sells.\n\n")
    assert info == {
        "title": "Shop",
        "version": "3.0",
        "license": {"name": "MIT"},
        "contact": {"name": "Ann"},
    }


def test_info_with_a_field_that_there_is_not() -> None:
    app = Starlette()
    app.state.asyncapi_info = {"name": "Shop"}
    with pytest.raises(TypeError, match=r"app\.state\.asyncapi_info has name; it may have title"):
        describe(app)


INFOS: list[tuple[Any, str]] = [
    (["title"], r"Expected `object`, got `array`"),
    ("Shop", r"Expected `object`, got `str`"),
    (None, r"Expected `object`, got `null`"),
    ({1: "Shop"}, r"Expected `str` - at `key` in `\$`"),
    ({"title": 1}, r"Expected `str`, got `int` - at `\$\.title`"),
    ({"license": "MIT"}, r"Expected `object`, got `str` - at `\$\.license`"),
    ({"license": {"url": "https://example.org"}}, r"missing required field `name`"),
    ({"tags": ["chat"]}, r"Expected `object`, got `str` - at `\$\.tags\[0\]`"),
]


@pytest.mark.parametrize(("info", "reason"), INFOS)
def test_info_of_another_shape(info: Any, reason: str) -> None:
    app = Starlette()
    app.state.asyncapi_info = info
    with pytest.raises(TypeError, match=rf"^app\.state\.asyncapi_info: .*{reason}"):
        describe(app)


def test_info_of_fastapi_has_what_asyncapi_has() -> None:
    app = FastAPI(license_info={"name": "MIT", "identifier": "MIT"})
    assert describe(app)["info"]["license"] == {"name": "MIT"}
    wrong = FastAPI(contact={"name": 1})  # FastAPI itself takes it until it is asked for OpenAPI
    with pytest.raises(TypeError, match=r"^the application's info: .* at `\$\.contact\.name`$"):
        describe(wrong)


SERVERS = [
    ("ws://127.0.0.1:8000", {"host": "127.0.0.1:8000", "protocol": "ws"}),
    ("https://example.org/", {"host": "example.org", "protocol": "wss"}),
    ("wss://[::1]:1/a/b/", {"host": "[::1]:1", "protocol": "wss", "pathname": "/a/b"}),
]


@pytest.mark.parametrize(("url", "expected"), SERVERS)
def test_the_server(url: str, expected: dict[str, str]) -> None:
    assert describe(Starlette(), server=url)["servers"] == {"server": expected}


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "ws:///path", ""])
def test_a_server_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected the URL of a server"):
        describe(Starlette(), server=url)


def test_a_route_without_a_parameter_that_the_class_needs() -> None:
    with pytest.raises(TypeError, match=r"Room\.room is FromPath, but the route '/'"):
        describe(Starlette(routes=[WebSocketRoute("/", Room)]))


# Served


def test_served_by_the_ready_application(edge: Edge) -> None:
    app = create_app(Settings())
    with live_server(app, **edge) as server:
        response = httpx2.get(f"{server.http}/asyncapi.json")
    assert response.headers["content-type"] == "application/json"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    host = server.http.removeprefix("http://")
    expected = describe(app) | {"servers": {"server": {"host": host, "protocol": "ws"}}}
    assert response.json() == expected


def routes() -> list[BaseRoute]:
    return [asyncapi_route(), WebSocketRoute("/rooms/{room}", Room)]


def within(*paths: str) -> Starlette:
    app = Starlette(routes=routes())
    for path in paths:
        app = Starlette(routes=[Mount(path, app=app)])
    return app


PLACES: list[tuple[Starlette, str, str]] = [
    (Starlette(routes=routes(), lifespan=lifespan), "", ""),
    (FastAPI(routes=routes(), lifespan=lifespan), "", ""),
    (within("/inner", "/{outer}"), "/x/inner", "/x/inner"),
    (Starlette(routes=[Mount("/docs", routes=[asyncapi_route()]), routes()[1]]), "/docs", ""),
    (
        Starlette(
            routes=[
                Mount(
                    "/{a}",
                    app=Starlette(
                        routes=[
                            Mount("/{b}", routes=[Mount("/c", routes=[asyncapi_route()])]),
                            routes()[1],
                        ]
                    ),
                )
            ]
        ),
        "/1/2/c",
        "/1",
    ),
]


@pytest.mark.parametrize(("app", "prefix", "base"), PLACES, ids=lambda value: str(value)[:12])
def test_served_from_where_it_stands(app: Starlette, prefix: str, base: str) -> None:
    with TestClient(app, base_url="https://example.org", root_path="/proxy") as client:
        document = client.get(f"/proxy{prefix}/asyncapi.json").json()
        assert document["servers"]["server"] == {
            "host": "example.org",
            "protocol": "wss",
            "pathname": f"/proxy{base}",
        }
        assert [each["address"] for each in document["channels"].values()] == ["/rooms/{room}"]


@pytest.mark.parametrize("host", [None, b"[", b"a/b[", b"", b"\xff"])
def test_a_request_that_names_no_host(host: bytes | None) -> None:
    app = Starlette(routes=routes())

    async def without_host(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [] if host is None else [(b"host", host)]
        await app({**scope, "headers": headers, "server": None}, receive, send)

    document = TestClient(without_host).get("/asyncapi.json").json()
    assert "servers" not in document
    assert list(document["channels"]) == ["Room"]


def test_a_path_of_its_own() -> None:
    app = Starlette(routes=[asyncapi_route("/chat.json")])
    assert TestClient(app).get("/chat.json").json()["channels"] == {}


def test_made_at_the_first_request_and_kept() -> None:
    app = FastAPI(routes=[asyncapi_route()])
    app.router.routes.append(WebSocketRoute("/later", WithoutAny))
    client = TestClient(app)
    assert "WithoutAny" in client.get("/asyncapi.json").json()["channels"]
    app.router.routes.append(WebSocketRoute("/too-late", Room))
    assert list(client.get("/asyncapi.json").json()["channels"]) == ["WithoutAny"]
    assert "/asyncapi.json" not in app.openapi()["paths"]


def test_a_description_that_cannot_be_made_is_a_500_and_one_traceback(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    app = Starlette(routes=routes())
    app.state.asyncapi_info = ["title"]
    with live_server(app, **edge) as server:
        assert httpx2.get(f"{server.http}/asyncapi.json").status_code == 500
    (logged,) = (each for each in caplog.records if each.levelname == "ERROR")
    error = logged.exc_info[1] if logged.exc_info else None
    assert str(error).startswith("app.state.asyncapi_info: Expected `object`")
    assert error is not None
    assert error.__suppress_context__


def test_one_route_in_two_applications() -> None:
    route = asyncapi_route()
    one = Starlette(routes=[route, WebSocketRoute("/one", WithoutAny)])
    two = Starlette(routes=[route, WebSocketRoute("/two", WithoutAny)])
    for app, path in [(one, "/one"), (two, "/two")]:
        channels = TestClient(app).get("/asyncapi.json").json()["channels"]
        assert [each["address"] for each in channels.values()] == [path]
