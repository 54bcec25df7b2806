/** The page: the list of endpoints, and the one that is chosen. */

import { announcer } from "../announcer.js";
import { element } from "../element.js";
import { Description } from "./description.js";
import { View } from "./view.js";

const small = matchMedia("(max-width: 62rem)"); // as in docs.css
const main = document.querySelector("main");
const list = main.querySelector(".endpoints");
const announce = announcer(document.getElementById("announcer"));
const { description: source, root } = document.body.dataset;
const views = new Map();

function trouble(sentence) {
  const notice = main.querySelector(".trouble");
  notice.textContent = sentence;
  notice.hidden = false;
}

async function load() {
  const response = await fetch(source, { cache: "no-cache" });
  if (!response.ok) throw new Error(`the server answers with ${response.status}`);
  return new Description(await response.json());
}

function linkTo(endpoint) {
  const link = element("a");
  link.href = `#${encodeURIComponent(endpoint.key)}`;
  const dot = element("i", "dot");
  dot.ariaHidden = "true";
  const words = element("span");
  words.append(element("strong", "", endpoint.title), " ", element("code", "", endpoint.address));
  link.append(dot, words);
  const item = element("li");
  item.append(link);
  return { item, link };
}

function show(description) {
  const { title, version, endpoints } = description;
  document.title = `${title}: WebSocket endpoints`;
  document.querySelector("h1").textContent = title;
  document.querySelector(".version").textContent = version;
  if (endpoints.length === 0) return trouble("No route of this application leads to an endpoint class.");
  const links = new Map(endpoints.map((endpoint) => [endpoint.key, linkTo(endpoint)]));
  list.querySelector("ul").append(...[...links.values()].map(({ item }) => item));
  list.hidden = false;
  const fold = () => list.toggleAttribute("open", !small.matches);
  small.addEventListener("change", fold);
  fold();

  function choose() {
    const isChosen = ({ key }) => `#${encodeURIComponent(key)}` === location.hash;
    const endpoint = endpoints.find(isChosen) ?? endpoints[0];
    if (!views.has(endpoint.key)) {
      const { link } = links.get(endpoint.key);
      const view = new View(endpoint, description, {
        root,
        place: main,
        announce,
        onState: (state) => (link.dataset.state = state),
      });
      views.set(endpoint.key, view);
    }
    for (const [name, view] of views) view.root.hidden = name !== endpoint.key;
    for (const [name, { link }] of links) link.ariaCurrent = name === endpoint.key ? "page" : null;
    list.querySelector("summary strong").textContent = endpoint.title;
    return views.get(endpoint.key);
  }

  choose();
  addEventListener("hashchange", () => {
    const view = choose();
    fold();
    view.find("h2").focus();
  });
}

try {
  show(await load());
} catch (error) {
  trouble(`The description of the endpoints can't be shown: ${error.message}.`);
}
