/** The page: three panels, the tabs over them, and what concerns them all. */

import { announcer } from "./announcer.js";
import { ChatPanel, claimClientId } from "./chat.js";
import { ItemsPanel } from "./items.js";
import { Panel } from "./panel.js";
import { tabs } from "./tabs.js";

class EchoPanel extends Panel {
  emptyText = "Send something, and the server says it back.";
}

/** Counts what came while nobody looked: at a tab of the page, or at the page. */
function newsCounter() {
  const title = document.title;
  let unseen = 0;
  const counts = new Map();
  const show = (panel) => {
    const count = counts.get(panel) ?? 0;
    const badge = panel.tab.querySelector(".unread");
    badge.textContent = count > 99 ? "99+" : String(count);
    badge.hidden = count === 0;
    badge.title = `${count} new`;
  };
  return {
    add(panel) {
      if (panel.root.hidden) {
        counts.set(panel, (counts.get(panel) ?? 0) + 1);
        show(panel);
      }
      if (document.hidden) document.title = `(${(unseen += 1)}) ${title}`;
    },
    seen(panel) {
      counts.delete(panel);
      show(panel);
    },
    pageSeen() {
      unseen = 0;
      document.title = title;
    },
  };
}

const closeCodes = JSON.parse(document.getElementById("close-codes").textContent);
const news = newsCounter();
const page = {
  announce: announcer(document.getElementById("announcer")),
  onNews: (panel) => news.add(panel),
};
const echo = new EchoPanel("echo", closeCodes, page);
const items = new ItemsPanel("items", closeCodes, page);
const chat = new ChatPanel("chat", closeCodes, page);
const panels = [echo, items, chat];

const tablist = document.querySelector('[role="tablist"]');
const { all, select } = tabs(tablist, (tab) => {
  news.seen(panels.find((panel) => panel.tab === tab));
  history.replaceState(null, "", `#${tab.id.replace("tab-", "")}`);
});
select(all.find((tab) => tab.id === `tab-${location.hash.slice(1)}`) ?? all[0]);
tablist.hidden = false; // without a script it would do nothing

// In a small window the notice is a word that unfolds.
const notice = document.getElementById("open-mode");
const small = matchMedia("(max-width: 46rem), (max-height: 30rem)"); // as in page.css
const fold = () => notice?.toggleAttribute("open", !small.matches);
small.addEventListener("change", fold);
fold();

// A visitor who is back at the page, or has a network again, need not wait for the next attempt.
const hurry = () => panels.forEach((panel) => panel.connection.reconnectNow());
addEventListener("online", () => panels.forEach((panel) => panel.connection.networkIsBack()));
addEventListener("pageshow", hurry);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  news.pageSeen();
  hurry();
});

echo.start();
items.start();
echo.connect();
chat.start(await claimClientId());
chat.connect();
