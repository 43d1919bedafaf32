// OpenAI's own client for JavaScript. node openai_javascript.mjs URL, beside its package.
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const model = "demo";
const messages = [{ role: "user", content: "the quick brown fox" }];
const schema = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] }, celsius: { type: "boolean" } },
  required: ["city", "celsius"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters: schema } }];

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

function expectWeather(text) {
  const found = JSON.parse(text);
  expect(typeof found.city === "string" && typeof found.celsius === "boolean", `not by the schema: ${text}`);
}

const checks = {
  async chat() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 8 });
    expect(answer.usage.completion_tokens > 0, "no usage");
  },
  async stream() {
    let end = null;
    for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 8, stream: true })) {
      end = chunk.choices[0]?.finish_reason ?? end;
    }
    expect(end === "stop" || end === "length", "no end");
  },
  async completions() {
    const answer = await client.completions.create({ model, prompt: "the quick", max_tokens: 4, n: 2 });
    expect(answer.choices.length === 2, "n");
  },
  async adapters() {
    const ask = (name) => client.chat.completions.create({ model: name, messages, max_tokens: 12, temperature: 0 });
    const [plain, adapted] = [await ask(model), await ask("title")];
    expect(plain.choices[0].message.content !== adapted.choices[0].message.content, "the adapter changes nothing");
  },
  async logprobs() {
    const answer = await client.chat.completions.create({
      model, messages, max_tokens: 3, logprobs: true, top_logprobs: 2,
    });
    expect(answer.choices[0].logprobs.content[0].top_logprobs.length === 2, "top_logprobs");
  },
  async tools() {
    // One call, or a model at random calls until its tokens are used up.
    const asked = { model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 };
    const answer = await client.chat.completions.create(asked);
    expectWeather(answer.choices[0].message.tool_calls[0].function.arguments);
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    expectWeather(streamed.choices[0].message.tool_calls[0].function.arguments);
  },
  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };
    const answer = await client.chat.completions.create({ model, messages, response_format, max_tokens: 200 });
    expectWeather(answer.choices[0].message.content);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: ["the quick", "a"] });
    const norm = answer.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
    expect(Math.abs(norm - 1) < 1e-3, "not normalised");
  },
  async responses() {
    const answer = await client.responses.create({ model, input: "the quick", max_output_tokens: 16 });
    expect(["completed", "incomplete"].includes(answer.status), "no status");
    const stream = client.responses.stream({ model, input: "the quick", max_output_tokens: 16 });
    expect((await stream.finalResponse()).output, "no output");
  },
  async errors() {
    try {
      await client.chat.completions.create({ model: "nobody", messages });
    } catch (error) {
      expect(error instanceof OpenAI.NotFoundError, "another class");
      return;
    }
    throw new Error("an unknown model answers");
  },
};

for (const [feature, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(JSON.stringify({ feature, ok: true }));
  } catch (error) {
    console.log(JSON.stringify({ feature, ok: false, error: String(error).slice(0, 600) }));
  }
}
