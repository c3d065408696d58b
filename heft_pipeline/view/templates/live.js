// Keeps a page as its files are: asks for what has changed, and puts the new text in its place.
// Where more than numbers have changed, the page's parts are taken from a new copy of it.
// Without this, a page is as it was made, and a reload makes it anew.
{
  const every = 2000, after = 10000, source = document.body.dataset.live;
  const notice = document.getElementById("notice");
  let state = document.body.dataset.state;

  function show({ texts, bars }) {
    for (const [id, text] of Object.entries(texts)) {
      const element = document.getElementById(id);
      if (element && element.textContent !== text) element.textContent = text;
    }
    for (const [id, value] of Object.entries(bars)) {
      const element = document.getElementById(id);
      if (element) element.value = value;
    }
  }

  async function swap() {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    const made = new DOMParser().parseFromString(await answer.text(), "text/html");
    const parts = [...made.querySelectorAll("[data-swap]")];
    const old = parts.map(part => document.getElementById(part.id));
    if (old.includes(null) || parts.length !== document.querySelectorAll("[data-swap]").length) {
      location.reload();
      return;
    }
    parts.forEach((part, place) => {
      const active = document.activeElement;
      if (active.matches("input, select") && old[place].contains(active)) return; // somebody is typing
      if (old[place].innerHTML !== part.innerHTML) old[place].replaceChildren(...part.childNodes);
    });
    state = made.body.dataset.state;
  }

  async function look() {
    let wait = every;
    try {
      if (!document.hidden) {
        const answer = await fetch(source);
        if (answer.ok) {
          const now = await answer.json();
          if (now.state === state) show(now); else await swap();
        }
        notice.hidden = true;
      }
    } catch {
      notice.textContent = "The view has ended, so this page no longer changes.";
      notice.hidden = false;
      wait = after;
    }
    setTimeout(look, wait);
  }
  setTimeout(look, every);
}
