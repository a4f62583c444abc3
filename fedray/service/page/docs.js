// Beside Swagger UI on /docs: once a call can be tried out, its form has the id of a real
// federation in it and example files chosen, so that Execute works as the form opens.
"use strict";

const EXAMPLE_ID = "8a6d1c0e4b7f49d0a2c4f5b1e3d79a60";  // of the OpenAPI description
const isOpen = (one) => one.state !== "stopped";
const isReady = (one) => one.state === "waiting for parties" && !one.remaining_parties;
const FITTING = {                       // which federation a call is tried out with
  "/start-party": (one) => one.state === "waiting for parties" && one.remaining_parties,
  "/train": isReady,
  "/stop": isOpen,
  "/stop-party": isOpen,
  "/aggregators/{id}/weights": (one) => one.round && one.state !== "training",
};
const described = fetch("/openapi.json").then((answer) => answer.json());

function keys() {
  const own = JSON.parse(sessionStorage.getItem("fedray-keys") || "null");  // live page's
  const entered = ui.authSelectors.authorized().toJS();
  const value = (name, other) => entered[name]?.value ?? other;
  const pairs = [["x-ibm-client-id", value("x-ibm-client-id", own?.client)],
    ["x-ibm-client-secret", value("x-ibm-client-secret", own?.secret)]];
  return Object.fromEntries(pairs.filter(([, value]) => value));
}

async function findId(path) {
  const answer = await fetch("/aggregators", {headers: keys(), cache: "no-store"});
  if (!answer.ok) return null;
  const newest = (await answer.json()).aggregators.reverse();
  return (newest.find(FITTING[path] || isOpen) || newest.find(isOpen) || newest[0])
    ?.aggregator_id;
}

function enter(field, value) {           // as if typed, so that React sees it
  const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
  Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, value);
  field.dispatchEvent(new Event("input", {bubbles: true}));
}

async function choose(field, path, name) {
  const form = (await described).paths[path].post.requestBody.content["multipart/form-data"];
  const source = form.schema.properties[name]["x-example-file"];
  if (!source) return;
  const content = await (await fetch(source)).blob();
  const files = new DataTransfer();
  files.items.add(new File([content], source.split("/").pop()));
  field.files = files.files;
  field.dispatchEvent(new Event("change", {bubbles: true}));
}

async function fill(block) {
  const path = block.querySelector("[data-path]")?.dataset.path;
  for (const field of block.querySelectorAll("input, textarea")) {
    if (field.dataset.filled) continue;
    if (field.type === "file") {
      field.dataset.filled = "yes";
      await choose(field, path, field.closest("[data-property-name]").dataset.propertyName);
    } else if (field.value.includes(EXAMPLE_ID)) {
      field.dataset.filled = "yes";
      const id = await findId(path);
      if (id) enter(field, field.value.replace(EXAMPLE_ID, id));
    }
  }
}

new MutationObserver(() => document.querySelectorAll(".opblock.is-open").forEach(fill))
  .observe(document.body, {childList: true, subtree: true});
