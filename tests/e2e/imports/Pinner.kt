import okhttp3.CertificatePinner
import okhttp3.OkHttpClient

private const val HOST = "api.publicobject.com"

class Pinner {
  // .add("old.publicobject.com", "sha256/WoiWRyIOVNa9ihaBciRSC7XHjliYS9VwUGOIud4PB18=")
  private val client = OkHttpClient.Builder()
      .certificatePinner(
          CertificatePinner.Builder()
              .add("publicobject.com", "sha256/afwiKY3RxoMmLkuRW1l7QsPZTJPwDS2pdDROQjXw8ig=")
              .add("*.publicobject.com", "sha256/" + "7HIpactkIAq2Y49orFOOQKurWxmmSFZhBCoQYcRhJ3Y=",
                  "sha1/DmxUShsZuNiqPQsX2Oi9uv2sCnw=")
              .add(HOST, "sha256/fwza0LRMXouZHRC8Ei+4PyuldPDcf3UKgO/04cDM1oE")
              .add("**.cdn.publicobject.com", "sha256/WoiWRyIOVNa9ihaBciRSC7XHjliYS9VwUGOIud4PB18=")
              .add("a*.publicobject.com", "sha256/WoiWRyIOVNa9ihaBciRSC7XHjliYS9VwUGOIud4PB18=")
              .add("dynamic.publicobject.com", "sha256/$pin")
              .build())
      .build()
}
