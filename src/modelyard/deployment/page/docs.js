// Writes /openapi.json as a page: every address, an example of its use, and the fields of its answer.

const description = await (await fetch("/openapi.json")).json();
const schemas = description.components?.schemas ?? {};

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function resolve(schema) {
  return schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
}

function kind(schema) {
  const real = resolve(schema);
  if (real?.type === "array") return `array of ${kind(real.items)}`;
  return real?.type ?? "any";
}

// Fields of an object and of the objects in it, as [path, kind, meaning].
function fields(schema, path = "") {
  const real = resolve(schema);
  if (real?.type === "array") return fields(real.items, `${path}[]`);
  return Object.entries(real?.properties ?? {}).flatMap(([name, inner]) => {
    const here = path ? `${path}.${name}` : name;
    return [[here, kind(inner), inner.description ?? ""], ...fields(inner, here)];
  });
}

function call(path, method, operation) {
  const card = element("section", "panel");
  card.append(element("h2", "", element("span", "method", method.toUpperCase()), element("code", "", path)));
  card.append(element("p", "", operation.summary ?? ""));
  const body = operation.requestBody?.content?.["application/json"];
  const lines = [`curl ${location.origin}${path}`];
  if (body) lines.push(`  -H 'Content-Type: application/json'`, `  -d '${JSON.stringify(body.example)}'`);
  card.append(element("pre", "", lines.join(" \\\n")));
  const answer = fields(operation.responses?.["200"]?.content?.["application/json"]?.schema);
  if (answer.length) card.append(element("h3", "", "Answer"), table(answer));
  const errors = Object.keys(operation.responses ?? {}).filter((status) => status >= 400);
  if (errors.length) {
    const form = '{"error": {"problem": …, "hint": …}}';
    card.append(element("h3", "", `Errors ${errors.join(", ")}${body ? " as" : ""}`));
    if (body) card.append(element("pre", "", form));
  }
  return card;
}

function table(rows) {
  const made = element("table", "fields");
  for (const [name, type, meaning] of rows) {
    made.append(element("tr", "", element("td", "", element("code", "", name)), element("td", "muted", type), element("td", "", meaning)));
  }
  return made;
}

for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("calls").append(call(path, method, operation));
  }
}
