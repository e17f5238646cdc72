// Real clients for Node, a function of a few lines each, as python_clients.py has them.
//
//     node node_clients.mjs NAME URL     # prints what it got and its packages' versions as JSON
//     node node_clients.mjs              # prints each client's API
import {readFileSync} from "node:fs";

const QUERY = "How do I open a socket?";
const DOCUMENTS = ["ls lists files.", "A socket is opened with socket() and connect().", "海滩上美丽的日落"];
const MODEL = "starter", PASSAGES = "starter/retrieval.passage", KEY = "none";

async function embedded(query, passages) {
  return {query: await query(QUERY), passages: await passages(DOCUMENTS)};
}

const CLIENTS = {
  "openai": ["OpenAI", ["openai"], async (url) => {
    const {default: OpenAI} = await import("openai");
    const openai = new OpenAI({baseURL: `${url}/v1`, apiKey: KEY});
    const vectors = async (input, model) =>
      (await openai.embeddings.create({model, input})).data.map((one) => Array.from(one.embedding));
    return embedded(async (text) => (await vectors([text], MODEL))[0], (texts) => vectors(texts, PASSAGES));
  }],
  "Vercel AI SDK": ["OpenAI", ["ai", "@ai-sdk/openai-compatible"], async (url) => {
    const {embed, embedMany} = await import("ai");
    const {createOpenAICompatible} = await import("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({name: "nestling", baseURL: `${url}/v1`, apiKey: KEY});
    return embedded(
      async (value) => (await embed({model: provider.embeddingModel(MODEL), value})).embedding,
      async (values) => (await embedMany({model: provider.embeddingModel(PASSAGES), values})).embeddings,
    );
  }],
  "Vercel AI SDK, Ollama": ["Ollama", ["ai", "ollama-ai-provider-v2"], async (url) => {
    const {embed, embedMany} = await import("ai");
    const {createOllama} = await import("ollama-ai-provider-v2");
    const provider = createOllama({baseURL: `${url}/api`});
    return embedded(
      async (value) => (await embed({model: provider.textEmbeddingModel(MODEL), value})).embedding,
      async (values) => (await embedMany({model: provider.textEmbeddingModel(PASSAGES), values})).embeddings,
    );
  }],
  "ollama": ["Ollama", ["ollama"], async (url) => {
    const {Ollama} = await import("ollama");
    const ollama = new Ollama({host: url});
    return embedded(
      async (prompt) => (await ollama.embeddings({model: `${MODEL}:latest`, prompt})).embedding,
      async (input) => (await ollama.embed({model: PASSAGES, input})).embeddings,
    );
  }],
  "LangChain.js, Ollama": ["Ollama", ["@langchain/ollama"], async (url) => {
    const {OllamaEmbeddings} = await import("@langchain/ollama");
    const made = (model) => new OllamaEmbeddings({baseUrl: url, model});
    return embedded((text) => made(MODEL).embedQuery(text), (texts) => made(PASSAGES).embedDocuments(texts));
  }],
  "LangChain.js, OpenAI": ["OpenAI", ["@langchain/openai"], async (url) => {
    const {OpenAIEmbeddings} = await import("@langchain/openai");
    const made = (model) => new OpenAIEmbeddings({model, apiKey: KEY, configuration: {baseURL: `${url}/v1`}});
    return embedded((text) => made(MODEL).embedQuery(text), (texts) => made(PASSAGES).embedDocuments(texts));
  }],
  "@huggingface/inference": ["Text Embeddings Inference", ["@huggingface/inference"], async (url) => {
    const {InferenceClient} = await import("@huggingface/inference");
    const tei = new InferenceClient(undefined, {endpointUrl: url});
    const typed = (texts) => texts.map((text) => `Passage: ${text}`);
    return embedded(
      async (text) => (await tei.featureExtraction({inputs: [text]}))[0],
      (texts) => tei.featureExtraction({inputs: typed(texts)}),
    );
  }],
  "cohere-ai": ["Cohere", ["cohere-ai"], async (url) => {
    const {CohereClientV2} = await import("cohere-ai");
    const cohere = new CohereClientV2({token: KEY, environment: url});
    const vectors = async (texts, inputType) =>
      (await cohere.embed({model: MODEL, texts, inputType, embeddingTypes: ["float"]})).embeddings.float;
    const ranked = await cohere.rerank({model: MODEL, query: QUERY, documents: DOCUMENTS});
    return {
      query: (await vectors([QUERY], "search_query"))[0],
      passages: await vectors(DOCUMENTS, "search_document"),
      ranking: ranked.results.map((one) => one.index),
    };
  }],
  "voyageai": ["Voyage", ["voyageai"], async (url) => {
    const {VoyageAIClient} = await import("voyageai");
    const voyage = new VoyageAIClient({apiKey: KEY, environment: `${url}/v1`});
    const vectors = async (input, inputType) =>
      (await voyage.embed({input, model: MODEL, inputType})).data.map((one) => one.embedding);
    return embedded(async (text) => (await vectors([text], "query"))[0], (texts) => vectors(texts, "document"));
  }],
};

function versionOf(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

const [name, url] = process.argv.slice(2);
if (name) {
  const [, packages, run] = CLIENTS[name];
  const found = await run(url);
  const versions = Object.fromEntries(packages.map((one) => [one, versionOf(one)]));
  console.log(JSON.stringify({found, versions}));
} else {
  console.log(JSON.stringify(Object.fromEntries(Object.entries(CLIENTS).map(([key, [api]]) => [key, api]))));
}
