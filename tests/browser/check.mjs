// Opens a report in headless Chromium, tries everything in it, and prints what was found as JSON.
//
//   node check.mjs MODULES CHROMIUM REPORT FOLDER
//
// MODULES holds playwright-core and axe-core, FOLDER takes screenshots and the printed page.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, chromium, report, folder] = process.argv.slice(2);
const require = createRequire(path.join(modules, "index.js"));
const playwright = require("playwright-core");
const axeSource = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await playwright.chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const address = pathToFileURL(path.resolve(report)).href;
const found = { errors: [], dialogs: [], requests: [], popups: 0 };

async function open(options) {
  // Scripts for the check itself (axe) are let through; requests are counted, the policy is tried apart.
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, bypassCSP: false, ...options });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) found.errors.push(message.text());
  });
  page.on("pageerror", (error) => found.errors.push(String(error)));
  page.on("dialog", (dialog) => {
    found.dialogs.push(dialog.message());
    dialog.dismiss();
  });
  page.on("popup", () => (found.popups += 1));
  page.on("request", (request) => {
    if (request.url() !== address && !/^(data|blob):/.test(request.url())) found.requests.push(request.url());
  });
  const began = Date.now();
  await page.goto(address);
  await page.waitForSelector("html[data-drawn]", { timeout: 60_000 });
  found.seconds ??= (Date.now() - began) / 1000;
  found.height ??= await page.evaluate(() => document.documentElement.scrollHeight);
  return page;
}

async function unfold(page) {
  await page.$$eval("details", (items) => items.forEach((item) => (item.open = true)));
  await page.waitForFunction(() => Array.from(document.querySelectorAll(".plot")).every((one) => one.layout));
}

const wideTables = (page) =>
  page.$$eval("table", (all) =>
    all.filter((one) => one.scrollWidth > one.parentElement.clientWidth).map((one) => one.id),
  );

const column = (page, table, index) =>
  page.$eval(
    `#${table}`,
    (element, at) => Array.from(element.tBodies[0].rows).map((row) => row.cells[at].textContent.trim().replaceAll("\u00a0", " ")),
    index,
  );

async function sortTables(page) {
  const tables = {};
  await unfold(page);
  for (const table of await page.$$eval("table", (all) => all.map((one) => one.id))) {
    tables[table] = [];
    const count = await page.$$eval(`#${table} thead button`, (all) => all.length);
    for (let index = 0; index < count; index += 1) {
      const button = page.locator(`#${table} thead button`).nth(index);
      const head = page.locator(`#${table} thead th`).nth(index);
      const before = await column(page, table, index);
      await button.click();
      const clicked = { sort: await head.getAttribute("aria-sort"), cells: await column(page, table, index) };
      await button.focus();
      await page.keyboard.press("Enter");
      const entered = { sort: await head.getAttribute("aria-sort"), cells: await column(page, table, index) };
      tables[table].push({ before, clicked, entered });
    }
    found.said = await page.textContent("#status");
  }
  return tables;
}

async function tabThrough(page) {
  const expected = await page.evaluate(() => {
    const all = document.querySelectorAll("a[href], button, summary, video[controls], [tabindex='0']");
    return Array.from(all)
      .filter((one) => one.checkVisibility())
      .map((one) => `${one.tagName} ${one.id || one.textContent.trim().slice(0, 40)}`);
  });
  await page.evaluate(() => {
    window.scrollTo(0, 0);
    document.activeElement.blur();
  });
  const reached = [];
  let hidden = 0;
  for (let press = 0; press < expected.length + 5; press += 1) {
    await page.keyboard.press("Tab");
    const here = await page.evaluate(() => {
      const one = document.activeElement;
      if (!one || one === document.body) return null;
      const style = getComputedStyle(one);
      return [`${one.tagName} ${one.id || one.textContent.trim().slice(0, 40)}`, style.outlineStyle !== "none"];
    });
    if (here === null) break;
    reached.push(here[0]);
    hidden += here[1] ? 0 : 1;
  }
  return { expected, reached, withoutOutline: hidden };
}

const axe = async (page) => {
  await page.evaluate(axeSource);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map((one) => `${one.id}: ${one.nodes.length} x ${one.nodes[0].html.slice(0, 160)}`);
};

const paper = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const inks = (page) =>
  page.$$eval(".plot .xtick text", (all) => [...new Set(all.map((one) => getComputedStyle(one).fill))]);

// ---- A wide window in light ----
let page = await open({ colorScheme: "light" });
await page.screenshot({ path: path.join(folder, "light.png"), fullPage: true });
await page.click("nav li:nth-child(3) a");
found.revealed = await page.$$eval("details.part[open]", (all) => all.length);
await unfold(page);
found.wideTables = await wideTables(page);
found.plots = await page.$$eval(".plot", (all) =>
  all.map((one) => ({
    key: one.dataset.plot,
    svgs: one.querySelectorAll("svg.main-svg").length,
    width: one.clientWidth,
    points: (one.data || []).reduce((sum, trace) => sum + (trace.x?.length ?? 0), 0),
    marks: one.querySelectorAll(".trace path, .trace .point, .hm image, .heatmaplayer image").length,
    texts: Array.from(one.querySelectorAll("svg text")).map((text) => text.textContent),
    alternative: document.getElementById(one.getAttribute("aria-describedby"))?.textContent.trim() ?? "",
    name: document.getElementById(one.getAttribute("aria-labelledby"))?.textContent.trim() ?? "",
  })),
);
found.text = await page.evaluate(() => document.body.innerText);
found.scripts = await page.$$eval("script", (all) => all.length);
found.suspect = await page.evaluate(() => {
  const handlers = Array.from(document.querySelectorAll("*")).filter((one) =>
    Array.from(one.attributes).some((attribute) => attribute.name.startsWith("on")),
  );
  const links = Array.from(document.querySelectorAll("a")).filter((one) => {
    const target = one.getAttribute("href") ?? one.getAttribute("xlink:href") ?? "";
    return target && !target.startsWith("#");
  });
  return [...handlers, ...links].map((one) => one.outerHTML.slice(0, 200));
});
found.headings = await page.$$eval("h1, h2, h3, h4", (all) => all.map((one) => Number(one.tagName[1])));
found.pictures = await page.$$eval("img", (all) =>
  all.map((one) => ({ wide: one.naturalWidth, alt: one.alt, hidden: one.hidden })),
);
found.axeLight = await axe(page);
found.themes = [{ paper: await paper(page), inks: await inks(page) }];
await page.click("#theme");
found.themes.push({
  paper: await paper(page),
  inks: await inks(page),
  pressed: await page.getAttribute("#theme", "aria-pressed"),
});
await page.reload();
await page.waitForSelector("html[data-drawn]");
found.themes.push({ paper: await paper(page), pressed: await page.getAttribute("#theme", "aria-pressed") });
found.tabs = await tabThrough(page);
found.tables = await sortTables(page);
found.play = await page.$$eval("button.play", (all) =>
  all.map((button) => {
    const states = [];
    for (let press = 0; press < 3; press += 1) {
      const [still, moving] = button.parentElement.querySelectorAll("img");
      states.push([button.textContent, still.hidden, moving.hidden]);
      button.click();
    }
    return states;
  }),
);
await page.context().close();

// ---- Dark by the system, then on paper ----
page = await open({ colorScheme: "dark" });
found.dark = { paper: await paper(page), pressed: await page.getAttribute("#theme", "aria-pressed") };
await page.screenshot({ path: path.join(folder, "dark.png"), fullPage: true });
const folded = await page.$$eval("details", (all) => all.filter((one) => !one.open).length);
await page.evaluate(() => {
  window.printed = [];
  addEventListener("beforeprint", () => window.printed.push(document.querySelectorAll("details:not([open])").length));
});
await page.pdf({ path: path.join(folder, "print.pdf"), format: "A4" });
found.print = {
  folded,
  during: await page.evaluate(() => window.printed),
  after: await page.$$eval("details", (all) => all.filter((one) => !one.open).length),
};
await page.emulateMedia({ media: "print" });
found.print.paper = await paper(page);
found.print.empty = await page.$$eval(".plot", (all) => all.filter((one) => !one.layout).length);
found.print.controls = await page.$$eval("button.control, nav", (all) => all.filter((one) => one.checkVisibility()).length);
await page.emulateMedia({ media: "screen" });
await unfold(page);
found.axeDark = await axe(page);
await page.context().close();

// ---- A phone ----
page = await open({ viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, reducedMotion: "reduce" });
await page.screenshot({ path: path.join(folder, "phone.png"), fullPage: true });
await unfold(page);
found.phoneTables = await wideTables(page);
found.phone = await page.evaluate(() => ({
  page: document.documentElement.scrollWidth,
  window: innerWidth,
  wide: Array.from(document.querySelectorAll(".plot, figure, table, h1, p")).filter(
    (one) => !one.closest(".scroll") && one.getBoundingClientRect().right > innerWidth + 1,
  ).length,
  drag: Array.from(document.querySelectorAll(".plot")).map((one) => one.layout.dragmode),
}));
// What another script would be allowed to do.
found.policy = await page.evaluate(async () => {
  const script = document.createElement("script");
  script.textContent = "window.intruder = true";
  document.body.append(script);
  let fetched = true;
  try {
    await fetch("https://example.com/");
  } catch (error) {
    fetched = false;
  }
  return { ran: window.intruder === true, fetched };
});
await page.context().close();
await browser.close();
process.stdout.write(JSON.stringify(found));
