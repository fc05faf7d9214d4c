// Requests of the Open Inference Protocol that are taken, those that are refused, and answers.
#include "serve/protocol.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "files.h"

using namespace rest_deploy;
using namespace rest_deploy::serve;

namespace {

Metadata metadata() {
  Metadata made;
  made.name = "rest_test";
  made.num_classes = 3;
  made.labels = {"ant", "bee", "cat"};
  made.input_name = "image";
  made.output_name = "logits";
  made.outputs = {{"logits", OutputKind::logits, 3, 0, false}};
  return made;
}

// Several outputs, from pixels.
Metadata several() {
  Metadata made = metadata();
  made.input = InputKind::pixels;
  made.outputs = {{"probabilities", OutputKind::probabilities, 3, 0, false},
                  {"embedding", OutputKind::embedding, 2, 0, true},
                  {"c2", OutputKind::features, 4, 4, false}};
  made.output_name = "probabilities";
  return made;
}

const std::size_t kFloats = std::size_t{3} * 32 * 32;

std::string json(const std::string& input_more, const std::string& more = "") {
  return R"({"id":"x","inputs":[{"name":"image","datatype":"FP32","shape":[1,3,32,32],)" +
         input_more + "}]" + more + "}";
}

std::string data(std::size_t count = kFloats) {
  std::string text = "\"data\":[0.5";
  for (std::size_t i = 1; i < count; ++i) text += ",1";
  return text + "]";
}

std::string binary_size(std::size_t bytes) {
  return "\"parameters\":{\"binary_data_size\":" + std::to_string(bytes) + "}";
}

std::string floats(std::size_t count, float first) {
  std::vector<float> values(count, 0.25F);
  values[0] = first;
  return {reinterpret_cast<const char*>(values.data()), count * sizeof(float)};
}

void taken() {
  const auto plain = parse_request(json(data()), std::nullopt, metadata());
  if (CHECK_THAT(plain.ok(), plain.status().text())) {
    const InferRequest& request = plain.value();
    CHECK(request.id == "x" && request.images.batch == 1 && request.images.height == 32);
    CHECK(request.images.data.size() == kFloats && request.images.data[0] == 0.5F);
    CHECK(request.outputs.size() == 1 && request.outputs[0].name == "logits");
    CHECK(!request.outputs[0].binary && request.outputs[0].classes == 0);
    CHECK(request.timeout_us == 0);
  }
  std::string nested = "\"data\":[[";
  for (int channel = 0; channel < 3; ++channel) {
    nested += channel == 0 ? "[" : ",[";
    for (int row = 0; row < 32; ++row) {
      nested += row == 0 ? "[0.5" : ",[1";
      for (int x = 1; x < 32; ++x) nested += ",2";
      nested += "]";
    }
    nested += "]";
  }
  CHECK(parse_request(json(nested + "]]"), std::nullopt, metadata()).ok());

  const std::string head = json(binary_size(kFloats * 4),
                                R"(,"outputs":[{"name":"logits","parameters":{"binary_data":false,)"
                                R"("classification":2}}],"parameters":{"binary_data_output":true,)"
                                R"("timeout":1500})");
  const auto binary = parse_request(head + floats(kFloats, -2), head.size(), metadata());
  if (CHECK_THAT(binary.ok(), binary.status().text())) {
    CHECK(binary.value().images.data[0] == -2 && binary.value().images.data[9] == 0.25F);
    CHECK(!binary.value().outputs[0].binary && binary.value().outputs[0].classes == 2);
    CHECK(binary.value().timeout_us == 1500);
  }
}

std::string pixel_json(const std::string& more, const std::string& outputs = "",
                       const std::string& shape = "[1,32,40,3]") {
  return R"({"inputs":[{"name":"image","datatype":"UINT8","shape":)" + shape + "," + more + "}]" +
         (outputs.empty() ? "" : ",\"outputs\":" + outputs) + "}";
}

void pixels() {
  const std::size_t count = 32 * 40 * 3;
  const std::string head = pixel_json(binary_size(count));
  std::string bytes(count, '\x07');
  bytes[5] = '\xff';
  const auto all = parse_request(head + bytes, head.size(), several());
  if (CHECK_THAT(all.ok(), all.status().text())) {
    const Images& images = all.value().images;
    CHECK(images.batch == 1 && images.height == 32 && images.width == 40 && images.data.empty());
    CHECK(images.pixels.size() == count && images.pixels[5] == 255 && images.pixels[6] == 7);
    CHECK(all.value().names() == std::vector<std::string>({"probabilities", "embedding", "c2"}));
  }
  const std::string some = pixel_json(
      data(count), R"([{"name":"c2","parameters":{"binary_data":true}},{"name":"probabilities",)"
                   R"("parameters":{"classification":1}}])");
  const auto asked = parse_request(replaced(some, "0.5", "3"), std::nullopt, several());
  if (CHECK_THAT(asked.ok(), asked.status().text())) {
    CHECK(asked.value().images.pixels[0] == 3 && asked.value().images.pixels[1] == 1);
    CHECK(asked.value().names() == std::vector<std::string>({"c2", "probabilities"}));
    CHECK(asked.value().outputs[0].binary && asked.value().outputs[1].classes == 1);
  }
  const std::string good = replaced(pixel_json(data(count)), "0.5", "3");
  CHECK(parse_request(good, std::nullopt, several()).ok());
  const auto code = [](const std::string& body) {
    return parse_request(body, std::nullopt, several()).status().code();
  };
  for (const char* value : {"0.5", "-1", "256", "1e1", "null"}) {
    CHECK_THAT(code(replaced(good, "[3,", std::string("[") + value + ",")) == Code::argument, value);
  }
  CHECK(code(replaced(good, "UINT8", "FP32")) == Code::argument);
  for (const char* shape : {"[1,3,32,40]", "[1,32,31,3]", "[1,31,40,3]", "[1,32,40,1]", "[32,40,3]"}) {
    CHECK_THAT(code(replaced(good, "[1,32,40,3]", shape)) == Code::shape, shape);
  }
  for (const char* outputs :
       {R"([{"name":"logits"}])", R"([{"name":"c2"},{"name":"c2"}])", R"([{"name":3}])", R"([{}])",
        R"([{"name":"c2","parameters":{"classification":1}}])",
        R"([{"name":"embedding","parameters":{"classification":1}}])", R"({"name":"c2"})"}) {
    const std::string body = replaced(pixel_json(data(count), outputs), "0.5", "3");
    CHECK_THAT(code(body) == Code::argument, outputs);
  }
}

// Several tensors, of which some are binary, in the order asked for.
void several_answers() {
  const Tensors tensors{{"c2", {1, 1, 2, 2}, {1, 2, 3, 4}},
                        {"probabilities", {1, 3}, {0.25F, 0.5F, 0.25F}},
                        {"embedding", {1, 2}, {0.5F, -0.5F}}};
  InferRequest request;
  request.outputs = {{"c2", true, 0}, {"probabilities", false, 0}, {"embedding", true, 0}};
  const Body body = format_response(request, tensors, several(), "m").value();
  if (!CHECK(body.json_size.has_value())) return;
  CHECK_THAT(body.content.substr(0, *body.json_size) ==
                 R"({"model_name":"m","model_version":"1","outputs":[{"name":"c2","datatype":)"
                 R"("FP32","shape":[1,1,2,2],"parameters":{"binary_data_size":16}},{"name":)"
                 R"("probabilities","datatype":"FP32","shape":[1,3],"data":[0.25,0.5,0.25]},)"
                 R"({"name":"embedding","datatype":"FP32","shape":[1,2],"parameters":)"
                 R"({"binary_data_size":8}}]})",
             body.content);
  float values[6];
  CHECK(body.content.size() == *body.json_size + sizeof values);
  std::memcpy(values, body.content.data() + *body.json_size, sizeof values);
  CHECK(values[0] == 1 && values[3] == 4 && values[4] == 0.5F && values[5] == -0.5F);
  CHECK(model_metadata(several(), "m", "b") ==
        R"({"name":"m","versions":["1"],"platform":"b","inputs":[{"name":"image","datatype":)"
        R"("UINT8","shape":[-1,-1,-1,3]}],"outputs":[{"name":"probabilities","datatype":"FP32",)"
        R"("shape":[-1,3]},{"name":"embedding","datatype":"FP32","shape":[-1,2]},{"name":"c2",)"
        R"("datatype":"FP32","shape":[-1,4,-1,-1]}]})");
}

void refused(const std::string& body, Code code, std::optional<std::size_t> size = std::nullopt) {
  const auto parsed = parse_request(body, size, metadata());
  CHECK_THAT(parsed.status().code() == code, body.substr(0, 200) + ": " + parsed.status().text());
  if (!parsed) CHECK(!parsed.status().message().empty());
}

void refusals() {
  const std::string good = json(data());
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("{}"),
        good + "x", replaced(good, "\"id\":\"x\"", "\"id\":3"),
        replaced(good, "\"image\"", "\"picture\""), replaced(good, "\"FP32\"", "\"FP64\""),
        replaced(good, "\"FP32\"", "32"), replaced(good, "0.5", "\"0.5\""),
        replaced(good, "0.5", "null"), replaced(good, "0.5", "1e300"),
        replaced(good, "0.5", "[[[[[[1]]]]]]"), replaced(good, "\"inputs\"", "\"input\""),
        replaced(good, "\"inputs\":[", "\"inputs\":[{},"),
        replaced(good, "}]}", "}],\"outputs\":[{\"name\":\"other\"}]}"),
        replaced(good, "}]}", "}],\"outputs\":[{},{}]}"),
        replaced(good, "}]}", "}],\"parameters\":{\"timeout\":-1}}"),
        replaced(good, "}]}", "}],\"parameters\":{\"binary_data_output\":1}}"),
        replaced(good, "}]}", "}],\"parameters\":[]}"),
        replaced(good, "}]}", "}],\"outputs\":[{\"name\":\"logits\",\"parameters\":"
                              "{\"classification\":4}}]}"),
        json("\"parameters\":{\"shared_memory_region\":\"a\"}")}) {
    refused(body, Code::argument);
  }
  for (const char* shape : {"[1,3,32]", "[1,3,31,32]", "[0,3,32,32]", "[1,1,32,32]", "[]", "7"}) {
    refused(replaced(good, "[1,3,32,32]", shape), Code::shape);
  }
  for (const char* shape : {"[-1,3,32,32]", "[1.5,3,32,32]", "[1,3,32,99999999999]",
                            "[1,3,32,18446744073709551617]"}) {
    refused(replaced(good, "[1,3,32,32]", shape), Code::argument);
  }
  refused(replaced(good, "[1,3,32,32]", "[1048576,3,1048576,1048576]"), Code::shape);
  refused(json(data(kFloats - 1)), Code::shape);

  const std::string head = json(binary_size(kFloats * 4));
  refused(head + floats(kFloats, 1), Code::argument, head.size() + kFloats * 4 + 1);
  refused(head + floats(kFloats, 1), Code::argument, head.size() - 1);
  refused(head + floats(kFloats, 1).substr(1), Code::shape, head.size());
  refused(head + floats(kFloats + 1, 1), Code::shape, head.size());
  refused(head + floats(kFloats, std::nanf("")), Code::argument, head.size());
  refused(head + floats(kFloats, std::numeric_limits<float>::infinity()), Code::argument,
          head.size());
  const std::string odd = json(binary_size(kFloats * 4 - 1));
  refused(odd + floats(kFloats, 1).substr(1), Code::shape, odd.size());
  refused(good + "0000", Code::argument, good.size());
}

void answers() {
  const Tensors logits{{"logits", {2, 3}, {1, 3, 2, 0.5F, 0.25F, -1}}};
  InferRequest request;
  request.id = "a\"b";
  request.outputs = {{"logits", false, 0}};
  const Body plain = format_response(request, logits, metadata(), "m").value();
  CHECK(!plain.json_size);
  CHECK_THAT(plain.content ==
                 R"({"model_name":"m","model_version":"1","id":"a\"b","outputs":[{"name":"logits",)"
                 R"("datatype":"FP32","shape":[2,3],"data":[1.0,3.0,2.0,0.5,0.25,-1.0]}]})",
             plain.content);
  request.outputs[0].binary = true;
  const Body binary = format_response(request, logits, metadata(), "m").value();
  CHECK(binary.json_size && binary.content.size() == *binary.json_size + 24);
  CHECK(binary.content.find("\"binary_data_size\":24") < *binary.json_size);
  float second = 0;
  std::memcpy(&second, binary.content.data() + *binary.json_size + 4, sizeof second);
  CHECK(second == 3);

  request.outputs[0].binary = false;
  request.outputs[0].classes = 2;
  const std::string named = format_response(request, logits, metadata(), "m").value().content;
  CHECK_THAT(named.find(R"("shape":[2,2],"data":["3.000000:1:bee","2.000000:2:cat",)"
                        R"("0.500000:0:ant","0.250000:1:bee"])") != std::string::npos,
             named);
  request.outputs[0].binary = true;
  const Body strings = format_response(request, logits, metadata(), "m").value();
  CHECK(strings.content.substr(*strings.json_size, 18) ==
        std::string("\x0e\0\0\0", 4) + "3.000000:1:bee");

  const Tensors broken{{"logits", {1, 3}, {1, std::nanf(""), 2}}};
  CHECK(format_response(request, broken, metadata(), "m").status().code() == Code::internal);
}

void descriptions() {
  CHECK(server_metadata() ==
        R"({"name":"rest-deploy","version":"0.1.0","extensions":["binary_tensor_data","classification"]})");
  CHECK(model_metadata(metadata(), "m", "openvino/cpu") ==
        R"({"name":"m","versions":["1"],"platform":"openvino/cpu","inputs":[{"name":"image",)"
        R"("datatype":"FP32","shape":[-1,3,-1,-1]}],"outputs":[{"name":"logits",)"
        R"("datatype":"FP32","shape":[-1,3]}]})");
  CHECK(error_body(Status(Code::argument, "no", "do")) == "{\"error\":\"no (do)\"}");
}

}  // namespace

int main() {
  taken();
  pixels();
  refusals();
  answers();
  several_answers();
  descriptions();
  return check::result();
}
